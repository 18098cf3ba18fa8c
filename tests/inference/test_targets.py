import numpy as np
import pytest
from perfect_maps import CLASSES, ColourNetwork, grid_of_nuclei, paint
from PIL import Image

from stqp.errors import InputError, UsageError
from stqp.inference.cohort import read_manifest
from stqp.inference.one import Settings
from stqp.inference.run import predict_targets
from stqp.inference.targets import Selection, plan
from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide

INST = grid_of_nuclei(200, 5, seed=4)
TYPES = np.arange(INST.max()) % 3 + 1


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(INST, TYPES)).save(path)
    return path


@pytest.fixture
def project(tmp_path):
    """Three images with metadata and tags."""
    folder = tmp_path / "project"
    with QuPathProject.open(folder, "x", version="0.6.0") as opened:
        for number, organ in enumerate(["colon", "colon", "lung"]):
            with open_slide(picture(tmp_path / "images" / f"case_{number}.png"), mpp=0.25) as slide:
                entry = opened.add_image(slide, metadata={"organ": organ, "batch": str(number % 2)})
                entry.write_objects(PathObjects.empty())
                entry.tags = ["train"] if number else ["test", "train"]
    return folder


def names(targets, *, entries=(), where=(), tags=(), project=None, recursive=False, out=None):
    failed = []
    jobs = plan(targets, project, Selection.parse(entries, where, tags), failed, out, recursive)
    return [job.name for job in jobs], failed


def test_images_of_projects_are_chosen(project):
    assert len(names([project])[0]) == 3
    assert names([project / "project.qpproj"], entries=["case_1.png"])[0] == ["case_1.png"]
    assert names([project], entries=["3", "case_0*"])[0] == ["case_0.png", "case_2.png"]
    assert names([project], where=["organ=colon"])[0] == ["case_0.png", "case_1.png"]
    assert names([project], where=["organ=colon", "batch=1"])[0] == ["case_1.png"]
    assert names([project], tags=["test", "train"])[0] == ["case_0.png"]
    assert names([project], tags=["train"], where=["organ=lung"])[0] == ["case_2.png"]
    with pytest.raises(
        InputError, match=r"no image of .*project is organ=liver.*batch=0.*organ=lung.*tags test, train"
    ):
        names([project], where=["organ=liver"])
    with pytest.raises(InputError, match=r"no project has the image nine; found case_0\.png"):
        names([project], entries=["nine"])
    with pytest.raises(UsageError, match="KEY=VALUE"):
        names([project], where=["organ"])


def test_folders_globs_and_what_is_in_neither(tmp_path, project):
    slides = tmp_path / "slides"
    for name in ("b.png", "a.png", "deep/c.png", "deep/deeper/d.png", "deep/notes.txt"):
        picture(slides / name) if name.endswith("png") else (slides / name).write_text("no slide")
    new = tmp_path / "new"
    assert names([slides], project=new)[0] == ["a.png", "b.png"]
    assert sorted(names([slides], project=new, recursive=True)[0]) == ["a.png", "b.png", "c.png", "d.png"]
    assert names([str(slides / "*.png")], project=new)[0] == ["a.png", "b.png"]
    assert sorted(names([str(slides / "**" / "*")], project=new)[0]) == ["a.png", "b.png", "c.png", "d.png"]
    (slides / "a[1].png").write_bytes((slides / "a.png").read_bytes())
    assert names([slides / "a[1].png", slides / "a.png"], project=new)[0] == ["a[1].png", "a.png"]
    # a project in a folder is not a folder of slides: its thumbnails are none
    assert "thumbnail.jpg" not in names([tmp_path], project=new, recursive=True)[0]
    assert names([tmp_path / "absent*.svs", slides], project=new)[1][0].endswith(
        "no file matches; expected slides, folders of slides or QuPath projects"
    )
    (tmp_path / "upper" / "lower").mkdir(parents=True)
    assert "--recursive" in names([tmp_path / "upper", slides], project=new)[1][0]
    with pytest.raises(UsageError, match=r"--project.*--out"):
        names([slides])
    with pytest.raises(UsageError, match="no target is a QuPath project"):
        names([slides], project=new, tags=["a"])


def test_two_slides_of_one_name_do_not_share_files(tmp_path):
    first, second = picture(tmp_path / "a" / "s.png"), picture(tmp_path / "b" / "s.png")
    out = tmp_path / "out"
    settings = Settings(mpp=0.25, out=out, table=True)
    predict_targets(ColourNetwork(), [first, second], settings)
    assert sorted(p.name for p in out.glob("*.parquet")) == ["s-2.parquet", "s.parquet"]
    jobs = plan([second], None, Selection(), [], out)
    assert jobs[0].stem == "s-2"  # its own again, though it comes alone
    predict_targets(ColourNetwork(), [second], settings)
    assert len([*out.glob("*.parquet")]) == 2


def test_an_entry_whose_image_is_gone_does_not_stop_the_others(project, tmp_path):
    (tmp_path / "images" / "case_1.png").unlink()
    record, failed = predict_targets(ColourNetwork(), [project])
    assert len(failed) == 1 and "case_1.png" in failed[0] and "relink" in failed[0]
    assert record.counts["images predicted"] == 2


def test_a_manifest_of_slides(tmp_path, project):
    picture(tmp_path / "one.png")
    picture(tmp_path / "sub" / "two.png")
    table = tmp_path / "cohort.csv"
    table.write_text(
        "slide,project,entry,name,mpp,organ\n"
        "one.png,new,,first,0.25,colon\n"
        "sub/two.png,new,,,0.25,\n"
        ",project,case_2.png,,,\n"
    )
    record, failed = predict_targets(ColourNetwork(), (), manifest=table)
    assert not failed and record.counts["images predicted"] == 3
    with QuPathProject.open(tmp_path / "new", "r") as opened:
        assert [entry.name for entry in opened.entries] == ["first", "two.png"]
        assert opened.entries[0].metadata["organ"] == "colon" and "organ" not in opened.entries[1].metadata
        assert all(len(entry.read_objects()) == INST.max() for entry in opened.entries)
    with QuPathProject.open(project, "r") as opened:
        assert [len(entry.read_objects()) for entry in opened.entries] == [0, 0, INST.max()]
    other = tmp_path / "cohort.toml"
    other.write_text('project = "new"\nmpp = 0.25\n[[slide]]\nslide = "one.png"\n[[slide]]\nslide = "sub/two.png"\n')
    jobs = read_manifest(other, None, None, [])
    assert [job.mpp for job in jobs] == [0.25, 0.25] and jobs[0].project == tmp_path / "new"


def test_wrong_rows_of_a_manifest_are_named(tmp_path, project):
    picture(tmp_path / "one.png")
    table = tmp_path / "cohort.csv"
    table.write_text(
        "slide,project,entry,mpp\n"
        "one.png,new,,fine\n"
        ",new,,\n"
        "one.png,,,\n"
        ",project,nine,\n"
        "one.png,new,,0.25\n"
        "one.png,new,,0.25\n"
    )
    with pytest.raises(InputError) as caught:
        read_manifest(table, None, None, [])
    text = str(caught.value)
    for part in (
        "row 1: expected µm per px above 0 as mpp, found 'fine'", "row 2: it lacks slide",
        "row 3: it names no project", "row 4: no project has the image nine", "row 6: one.png is that of row 5",
    ):  # fmt: skip
        assert part in text
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "absent.csv", None, None, [])
    table.write_text("slide,project\n")
    with pytest.raises(InputError, match="names no slide"):
        read_manifest(table, None, None, [])
    with pytest.raises(UsageError, match="nothing to predict"):
        predict_targets(ColourNetwork())


def test_classes_that_a_project_lacks_are_added_and_said(project):
    with QuPathProject.open(project, "r+") as opened:
        opened.set_classes({"Tumor": (1, 2, 3), CLASSES[0]: (4, 5, 6)})
    network = ColourNetwork()
    network.colors = {CLASSES[1]: (7, 8, 9)}
    record, _ = predict_targets(network, [project])
    assert len(record.warnings) == 1  # once for three images
    assert "Inflammatory, Connective are none of the project's (Tumor, Neoplastic)" in record.warnings[0]
    with QuPathProject.open(project, "r") as opened:
        assert opened.classes["Neoplastic"] == (4, 5, 6) and opened.classes["Inflammatory"] == (7, 8, 9)


def test_files_without_a_project(tmp_path):
    slide = picture(tmp_path / "s.png")
    out = tmp_path / "out"
    settings = Settings(
        mpp=0.25, out=out, table=True, geojson=True, annotation_store=True, overlay=1.0, cell_expansion=2.0
    )
    record, failed = predict_targets(ColourNetwork(), [slide], settings)
    assert not failed
    there = {p.name for p in out.iterdir()} - {".status"}
    assert there == {"s.parquet", "s.geojson", "s.db", "s.overlay.ome.tif", "s.json"}
    assert {p.split("/")[-1].split("\\")[-1] for p in record.results["images"][0]["files"].values()} < there
    with pytest.raises(UsageError, match="none is asked for"):
        predict_targets(ColourNetwork(), [slide], Settings(mpp=0.25, out=out))


def test_a_project_is_not_left_behind_when_every_slide_failed(tmp_path):
    slide = picture(tmp_path / "s.png")
    record, failed = predict_targets(ColourNetwork(), [slide], project=tmp_path / "new")
    assert "--mpp" in failed[0] and record.counts["images predicted"] == 0
    assert not (tmp_path / "new").exists()


def test_slides_of_one_colour_or_without_tissue_give_no_nuclei(tmp_path):
    for name, value in (("white", 255), ("grey", 128), ("black", 0)):
        Image.fromarray(np.full((300, 280, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    settings = Settings(mpp=0.25, out=out, table=True, annotation_store=True, overlay=1.0, cell_expansion=3.0)

    class Blind(ColourNetwork):
        def predict(self, batch):
            maps = super().predict(batch)
            return {"np": maps["np"] * 0, "hv": maps["hv"] * 0, "tp": maps["tp"]}

    for tissue in (True, False):
        record, failed = predict_targets(
            Blind(), [tmp_path], Settings(**{**vars(settings), "tissue": tissue}), project=tmp_path / "project"
        )
        assert not failed and record.counts["nuclei"] == 0 and record.counts["images predicted"] == 3


def test_annotations_bound_where_is_looked(project):
    with QuPathProject.open(project, "r+") as opened:
        box = Polygons.from_rings([[20, 30], [150, 30], [150, 120], [20, 120]], [0, 4])
        opened.entries[0].write_objects(PathObjects.build(box, classes="Region*", names=["hot spot"]))
    predict_targets(ColourNetwork(), [project], selection=Selection(["case_0.png"]))
    with QuPathProject.open(project, "r") as opened:
        everywhere = opened.entries[0].read_objects()
    for name in ("Region", "Region*", "hot spot"):
        record, failed = predict_targets(ColourNetwork(), [project], Settings(within=name))
        assert len(failed) == 2 and f"no annotation of the class or name {name!r}" in failed[0]
        x, y = everywhere.polygons.centroid()[1:].T
        inside = ((x > 20) & (x < 150) & (y > 30) & (y < 120)).sum()
        assert 0 < record.counts["nuclei"] == inside < INST.max()
    with QuPathProject.open(project, "r") as opened:  # what an earlier run found elsewhere stayed
        assert sorted(opened.entries[0].read_objects().ids) == sorted(everywhere.ids)
