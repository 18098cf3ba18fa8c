import re

import numpy as np
import pytest
from click.testing import CliRunner
from perfect_maps import CLASSES, grid_of_nuclei
from PIL import Image
from stqp_cli.evaluate import command

from stqp.evaluation import fields
from stqp.evaluation.evaluate import evaluate
from stqp.evaluation.map_files import MapFolder
from stqp.evaluation.options import Options
from stqp.evaluation.summary import summary
from stqp.report.evaluation import COLORS, write_report


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("report")
    for which in ("true", "good", "bad"):
        (base / which).mkdir()
    for seed in (1, 2, 3):
        inst = grid_of_nuclei(600, 16, seed)
        ids = np.unique(inst)[1:]
        types = ids % 3 + 1
        rng = np.random.default_rng(seed)
        pixels = np.where((inst > 0)[..., None], (100, 70, 160), (240, 200, 220)).astype(np.uint8)
        Image.fromarray(pixels).save(base / "true" / f"t{seed}.png")
        np.savez(base / "true" / f"t{seed}.npz", inst=inst, types=types, classes=np.array(CLASSES))
        for name, lost, wrong in (("good", 0.05, 0.05), ("bad", 0.3, 0.4)):
            pred = np.roll(inst, 1, 1)
            if name == "bad":
                pred[:, 500:] = 0  # nothing on the right
            pred[np.isin(pred, ids[rng.random(len(ids)) < lost])] = 0
            kept = np.unique(pred)[1:]
            kinds = np.where(rng.random(len(kept)) < wrong, rng.integers(1, 4, len(kept)), kept % 3 + 1)
            probability = np.clip(rng.normal(0.8, 0.1, len(kept)), 0, 1)
            np.savez(base / name / f"t{seed}.npz", inst=pred, types=kinds, classes=np.array(CLASSES),
                     probability=probability)  # fmt: skip
    return base


def test_the_report_holds_all_it_should_and_needs_nothing_else(folders, tmp_path):
    path = tmp_path / "r.html"
    result = CliRunner().invoke(
        command, ["--true", str(folders / "true"), "--pred", f"A={folders / 'bad'}", "--pred", f"B={folders / 'good'}",
                  "--html", str(path), "--csv", str(tmp_path / "r.csv"), "--bootstrap", "100", "--fields", "4"]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    page = path.read_text(encoding="utf-8")
    for heading in ("Where it is worst", "Scores", "Predictions compared", "Classes", "Counts and densities",
                    "Probabilities", "Images"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert page.count('class="swap"') == 4
    assert page.count("data:image/svg+xml") == 5
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources and all(s.startswith("data:") for s in sources)
    assert "You can see" not in page and "you can see a difference" in page
    rows = (tmp_path / "r.csv").read_text().splitlines()
    assert rows[0] == "prediction,level,name,class,score,value,low,high"
    assert any(r.startswith("B,image,t2,Neoplastic,type_f1,") for r in rows)
    assert any(re.match(r"A,pooled,,,pq,0\.\d+,0\.\d+,0\.\d+$", r) for r in rows)
    assert "blocks of 250 µm" in result.output  # three images are few
    assert "B minus A" in result.output


def test_worst_fields_come_first(folders):
    evaluation = evaluate(MapFolder(folders / "true"), {"p": MapFolder(folders / "bad")}, Options(bootstrap=0))
    found = fields.worst_fields(evaluation, "p", 5)
    ranks = [f.rank for f in found]
    assert ranks == sorted(ranks) and ranks[0] < 0.2
    assert found[0].box[0] == 500  # where nothing was found
    assert max(sum(f.image.name == name for f in found) for name in ("t1", "t2", "t3")) == 2
    every = fields.fields_of(evaluation.images[0], "p", 3)
    assert sum(f.scores["true"] for f in every) == len(evaluation.images[0].matches["p"].overlap.true_area)


def test_states_tell_what_became_of_nuclei(folders):
    evaluation = evaluate(MapFolder(folders / "true"), {"p": MapFolder(folders / "good")}, Options(bootstrap=0))
    matched = evaluation.images[0].matches["p"]
    true, pred = fields.states(matched)
    counts = {name: int((true == name).sum()) for name in set(true)}
    assert counts[fields.MISSED] == len(true) - len(matched.true)
    wrong = (matched.overlap.true_types[matched.true] != matched.overlap.pred_types[matched.pred]).sum()
    assert counts[fields.CLASS] == wrong > 0 and counts[fields.FOUND] > 200
    assert set(pred) <= {fields.PREDICTED, fields.SPURIOUS}


def test_pictures_have_the_colours_of_the_legend(folders):
    from stqp.evaluation.baselines import open_pixels
    from stqp.report.evaluation import _field, _outlines

    evaluation = evaluate(MapFolder(folders / "true"), {"p": MapFolder(folders / "bad")}, Options(bootstrap=0))
    field = fields.worst_fields(evaluation, "p", 1)[0]
    drawn = []
    from stqp.report import evaluation as report

    original = report.picture
    try:
        report.picture = lambda image, alt: (drawn.append(image), original(image, alt))[1]
        truth, found = (s.read(field.image.name) for s in (evaluation.true, evaluation.pred["p"]))
        outlines = _outlines(field.image.matches["p"], truth, found)
        with open_pixels(truth) as slide:
            _, words = _field(field, slide, truth.size, *outlines)
    finally:
        report.picture = original
    plain, lined = drawn
    assert plain.shape == lined.shape and (plain != lined).any()
    assert (lined == COLORS[fields.MISSED]).all(axis=2).sum() > 100
    assert not (plain == COLORS[fields.MISSED]).all(axis=2).any()
    assert f"{field.scores['missed']:.0f} missed" in words


def test_without_images_outlines_stand_on_grey(folders, tmp_path):
    for name in ("t1", "t2"):
        content = dict(np.load(folders / "true" / f"{name}.npz"))
        np.savez(tmp_path / f"{name}.npz", **content)
    evaluation = evaluate(MapFolder(tmp_path), {"p": MapFolder(tmp_path)}, Options(bootstrap=0))
    write_report(tmp_path / "r.html", evaluation, summary(evaluation), 2)
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count('class="swap"') == 2
