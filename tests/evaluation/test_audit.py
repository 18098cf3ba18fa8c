import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from perfect_maps import CLASSES, grid_of_nuclei
from PIL import Image
from scipy.stats import fisher_exact
from stqp_cli.audit import command

from stqp.errors import InputError, UsageError
from stqp.evaluation import leaks
from stqp.evaluation.drops import Drops, read_drops
from stqp.patches.store import PatchWriter
from stqp.polygonise import polygonise
from stqp.qupath.geojson_read import read_geojson
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide

SIZE = 32


def pixels(seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def write_patches(path, rows, slides=("s1",), patients=(), labels=None):
    """Rows: (x, y, source, side, seed of the pixels)."""
    empty = np.zeros((SIZE, SIZE), np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with PatchWriter(path, SIZE, 0.5, CLASSES) as writer:
        for x, y, source, side, seed in rows:
            image = seed if isinstance(seed, np.ndarray) else pixels(seed)
            writer.append((x, y), source, side, images=image, instances=empty, types=empty, valid=empty + 1)
        sources = [
            {"entry": f"{s}.svs", "slide": s, "mpp": 0.25, "metadata": {"Patient": patients[i]} if patients else {}}
            for i, s in enumerate(slides)
        ]
        writer.finish(sources, labels=labels or {})
    return path


def kinds(found):
    return [leak.kind for leak in found]


def test_a_clean_split_shares_the_slide_alone(tmp_path):
    path = write_patches(tmp_path / "run" / "patches.h5", [(0, 0, 0, 0, 1), (200, 0, 0, 1, 2), (400, 0, 0, 2, 3)])
    run = str(path.parent)
    found = leaks.find_leaks(leaks.read_material(run, ["training"]), leaks.read_material(run, ["validation", "test"]))
    assert kinds(found) == [leaks.SLIDE]
    result = CliRunner().invoke(command, ["leaks", run])
    assert result.exit_code == 0 and "not for new ones" in result.output


def test_overlapping_patches_are_measured(tmp_path):
    # patches of 32 px at 0.5 µm are 64 px of the slide; half of the second lies on the first
    path = write_patches(tmp_path / "patches.h5", [(0, 0, 0, 0, 1), (32, 0, 0, 1, 2)])
    sides = [leaks.read_material(str(path), [s]) for s in ("training", "validation")]
    found = leaks.find_leaks(*sides)
    assert kinds(found) == [leaks.OVERLAP, leaks.SLIDE]
    assert found[0].detail.startswith(f"{32 * 64 * 0.25**2 / 1e6:.4g} mm²")
    result = CliRunner().invoke(command, ["leaks", str(path), "--json"])
    assert result.exit_code == 3
    record = json.loads(result.output[result.output.index("{") :])
    assert record["results"]["leaks"][0]["kind"] == leaks.OVERLAP


def test_patients_and_copied_pixels_are_found_across_files(tmp_path):
    a = write_patches(tmp_path / "a.h5", [(0, 0, 0, 0, 1), (0, 0, 1, 0, 7)], ("s1", "s2"), ("p1", "p2"))
    noisy = np.clip(pixels(7).astype(int) + np.random.default_rng(0).integers(-2, 3, (SIZE, SIZE, 3)), 0, 255)
    rows = [(0, 0, 0, 0, 1), (0, 0, 1, 0, noisy.astype(np.uint8)), (90, 90, 1, 0, 12)]
    b = write_patches(tmp_path / "b.h5", rows, ("s3", "s4"), ("p2", "p9"))
    found = leaks.find_leaks(*(leaks.read_material(str(p)) for p in (a, b)))
    assert kinds(found) == [leaks.COPY, leaks.ALIKE, leaks.PATIENT]
    assert (found[0].first, found[0].second) == ("s1.svs, patch 0", "s3.svs, patch 0")
    assert (found[1].first, found[1].second) == ("s2.svs, patch 1", "s4.svs, patch 1")
    assert (found[2].first, found[2].second, found[2].detail) == ("s2.svs", "s3.svs", "patient p2")
    other = write_patches(tmp_path / "c.h5", [(0, 0, 0, 0, 30)], ("s5",), ("p7",))
    result = CliRunner().invoke(command, ["leaks", str(a), str(other)])
    assert result.exit_code == 0 and "nothing is on both sides" in result.output


def test_empty_glass_is_no_copy(tmp_path):
    white = np.full((SIZE, SIZE, 3), 243, np.uint8)
    files = [write_patches(tmp_path / f"{n}.h5", [(0, 0, 0, 0, white)], (n,)) for n in "ab"]
    assert not leaks.find_leaks(*(leaks.read_material(str(f)) for f in files))


def test_near_hashes_equal_a_loop():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2**63, (30, 4), dtype=np.uint64)
    b = np.concatenate([a[:5] ^ np.uint64(5), rng.integers(0, 2**63, (20, 4), dtype=np.uint64)])
    slow = [(i, j, n) for i in range(30) for j in range(25)
            if (n := sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a[i], b[j], strict=True))) <= 10]  # fmt: skip
    assert leaks._near(a, b) == slow and len(slow) == 5


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """ST nuclei as annotations and a network's as detections, which agree on the left and not on the right."""
    folder = tmp_path_factory.mktemp("audit")
    inst = grid_of_nuclei(512, 12, seed=3)
    found = inst.copy()
    found[:, 256:] = np.roll(inst, 20, axis=0)[:, 256:]
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)).save(folder / "he.png")
    true, ids = polygonise(inst)
    pred, _ = polygonise(found)
    right = true.centroid()[:, 0] > 256
    names = np.where(right, "Neoplastic", np.where(ids % 2 == 0, "Inflammatory", "Connective"))
    detections = PathObjects.build(
        pred, kind=ObjectKind.DETECTION, classes="Neoplastic", metadata={"stqp.source": "predict:net"}
    )
    with QuPathProject.open(folder / "project", "x") as opened:
        with open_slide(folder / "he.png", mpp=0.25) as slide:
            entry = opened.add_image(slide)
        entry.write_objects(PathObjects.concatenate([PathObjects.build(true, classes=names.tolist()), detections]))
    return folder / "project"


def test_fields_where_masks_disagree_and_whom_the_filter_would_drop(project, tmp_path):
    result = CliRunner().invoke(
        command, ["masks", str(project), "--csv", str(tmp_path / "f.csv"), "--geojson", str(tmp_path / "g"), "--json"]
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.output[result.output.index("{") :])
    rows = [*csv.DictReader((tmp_path / "f.csv").open())]
    assert len(rows) == record["counts"]["fields"] == 4
    dice = [float(r["dice"]) for r in rows]
    assert dice == sorted(dice) and dice[1] < 0.5 < 0.9 < dice[2]
    assert {float(r["x0"]) for r in rows if float(r["dice"]) < 0.5} == {256.0}
    for row in rows:
        d, j = float(row["dice"]), float(row["jaccard"])
        assert j == pytest.approx(d / (2 - d)) and float(row["pq"]) <= 1
    rates = {d["class"]: d["rate"] for d in record["results"]["drops"] if d["reason"] != "all reasons"}
    assert rates["Neoplastic"] > 0.95 and rates["Inflammatory"] < 0.1
    assert any("Neoplastic loses" in w for w in record["warnings"])
    ignored = read_geojson(tmp_path / "g" / "he.geojson")
    assert len(ignored) == 2 and set(ignored.classes) == {"Ignore"}
    assert ignored.measurements["ST agreement: dice"].max() < 0.5


def test_the_same_image_is_found_in_a_folder_and_a_project(project, tmp_path):
    with Image.open(project.parent / "he.png") as image:
        image.save(tmp_path / "copy.png")
        image.crop((0, 0, 300, 300)).save(tmp_path / "other.png")
    found = leaks.find_leaks(leaks.read_material(str(project)), leaks.read_material(str(tmp_path)))
    assert (leaks.COPY, "copy") in [(leak.kind, leak.second) for leak in found]
    assert "other" not in [leak.second for leak in found]


def test_drop_rates_of_each_class(tmp_path):
    labels = {
        "Neoplastic": {"used": 950, "pale": 50},
        "Dead": {"used": 40, "pale": 60},
        "Unknown": {"used": 90, "pale": 10},
    }
    path = write_patches(tmp_path / "run" / "patches.h5", [(0, 0, 0, 0, 1)], labels=labels)
    rows = {(r["class"], r["reason"]): r for r in read_drops(path.parent).rows()}
    dead = rows["Dead", "pale"]
    assert (dead["dropped"], dead["nuclei"], dead["rate"]) == (60, 100, 0.6)
    assert dead["censored"] and not rows["Neoplastic", "pale"]["censored"] and not rows["Unknown", "pale"]["censored"]
    assert fisher_exact([[60, 40], [60, 1040]]).pvalue < 0.01
    statsmodels = pytest.importorskip("statsmodels.stats.proportion")
    assert dead["interval"] == pytest.approx(statsmodels.proportion_confint(60, 100, method="wilson"))
    result = CliRunner().invoke(command, ["drops", str(path.parent)])
    assert result.exit_code == 0 and "Dead loses 60.0% of its nuclei pale" in result.output
    assert "<- more than other classes" in result.output


def test_few_nuclei_are_not_called_censored():
    rows = Drops({"a": {"used": 1, "x": 1}, "b": {"used": 8, "x": 2}}, "test").rows()
    assert not any(r["censored"] for r in rows)
    assert Drops({}, "test").rows() == []


def test_bad_input(tmp_path, project):
    path = write_patches(tmp_path / "patches.h5", [(0, 0, 0, 0, 1)])
    run = CliRunner().invoke
    with pytest.raises(InputError, match="which labels were dropped"):
        run(command, ["drops", str(path)], catch_exceptions=False)
    with pytest.raises(InputError, match="expected a training run or a file of patches"):
        run(command, ["drops", str(tmp_path / "none")], catch_exceptions=False)
    with pytest.raises(UsageError, match="has no two sides"):
        run(command, ["leaks", str(project)], catch_exceptions=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a project or a folder of images, found"):
        run(command, ["leaks", str(path), str(tmp_path / "empty")], catch_exceptions=False)
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no whole file of stqp patches"):
        run(command, ["leaks", str(path), str(tmp_path / "broken.h5")], catch_exceptions=False)
