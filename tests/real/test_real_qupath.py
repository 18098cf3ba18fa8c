"""Projects that QuPath 0.4.4 to 0.7.0 saved, against what QuPath itself says of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely

from stqp.polygons import Polygons
from stqp.qupath import qpdata
from stqp.qupath.codec import runs
from stqp.qupath.codec.decode import Parts
from stqp.qupath.java.nodes import Instance, Text
from stqp.qupath.java.reader import Reader
from stqp.qupath.java.writer import Writer
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind
from stqp.qupath.project import QuPathProject

VERSIONS = ["v0.4.4", "v0.5.1", "v0.6.0", "v0.7.0"]
ROI_NAMES = {
    "PolygonROI": RoiKind.POLYGON,
    "RectangleROI": RoiKind.RECTANGLE,
    "EllipseROI": RoiKind.ELLIPSE,
    "GeometryROI": RoiKind.GEOMETRY,
    "LineROI": RoiKind.LINE,
    "PolylineROI": RoiKind.POLYLINE,
    "PointsROI": RoiKind.POINTS,
}
LINES = (RoiKind.LINE, RoiKind.POLYLINE, RoiKind.POINTS)
KIND_NAMES = {
    "PathAnnotationObject": ObjectKind.ANNOTATION,
    "PathDetectionObject": ObjectKind.DETECTION,
    "PathCellObject": ObjectKind.CELL,
    "PathTileObject": ObjectKind.TILE,
    "TMACoreObject": ObjectKind.TMA_CORE,
}


@pytest.fixture
def golden(real_data: Path, tmp_path):
    """Give a copy of a golden project by its version."""

    def copy(name: str) -> Path:
        source = real_data / "qupath" / name
        if not source.is_dir():
            pytest.skip(f"{source} is missing")
        target = tmp_path / name
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        for folder in [target, *target.rglob("*")]:
            folder.chmod(0o755)
        return target

    return copy


def streams(real_data: Path) -> list[Path]:
    found = sorted((real_data / "qupath").rglob("data.qpdata"))
    if not found:
        pytest.skip(f"{real_data} has no qupath/**/data.qpdata")
    return found


def test_every_stream_is_reproduced_byte_for_byte(real_data):
    found = streams(real_data)
    for path in found:
        data = path.read_bytes()
        pieces: list[bytes] = []
        Writer(pieces.append).write(Reader(data).read())
        assert b"".join(pieces) == data, path
    assert len(found) >= 13


def test_every_file_is_carried_byte_for_byte(real_data, tmp_path):
    for path in streams(real_data):
        copy = tmp_path / "data.qpdata"
        shutil.copyfile(path, copy)
        qpdata.rewrite(copy, lambda present: np.zeros(len(present), bool), PathObjects.empty())
        assert copy.read_bytes() == path.read_bytes(), path


def test_objects_of_every_file_are_replaced_in_place(real_data, tmp_path, monkeypatch):
    from qupath.qupath_objects import many, same

    changed = 0
    for path in streams(real_data):
        copy = tmp_path / "data.qpdata"
        shutil.copyfile(path, copy)
        present = qpdata.read_objects(copy)
        qpdata.update(copy, [], PathObjects.empty())
        assert copy.read_bytes() == path.read_bytes(), path
        leaves = np.flatnonzero(present.kind != ObjectKind.TMA_CORE)
        for at in (leaves, leaves[::3], leaves[:1]):
            shutil.copyfile(path, copy)
            new = many(len(at), seed=1)
            new.ids[:] = present.ids[at]
            qpdata.update(copy, at, new)
            read = qpdata.read_objects(copy)
            assert read.ids.tolist() == present.ids.tolist()
            np.testing.assert_array_equal(read.parent, present.parent)
            rest = np.delete(np.arange(len(present)), at)
            one, other = read.take(at), read.take(rest)
            one.parent[:] = -1
            same(one, new)
            expected = present.take(rest)
            expected.class_colors = other.class_colors
            same(other, expected)
            with monkeypatch.context() as patch:
                patch.setattr(runs.RunReader, "take_run", lambda self, contents: False)
                same(qpdata.read_objects(copy), read)
            changed += len(at)
    assert changed > 100


def test_the_fast_reader_agrees_with_the_slow_one(real_data, monkeypatch):
    from qupath.qupath_objects import same

    path = real_data / "qupath" / "v0.6.0_cells_demo" / "data" / "1" / "data.qpdata"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    fast = qpdata.read_objects(path)
    in_runs = [len(item) for item, parts, _, _ in qpdata._parse(path).walk() if parts is None]
    assert sum(in_runs) == 120  # of 121 cells; the first defines the classes
    monkeypatch.setattr(runs.RunReader, "take_run", lambda self, contents: False)
    same(fast, qpdata.read_objects(path))
    summary = json.loads((path.parent / "summary.json").read_text())["hierarchy"]
    assert len(fast) + 1 == summary["nObjects"]
    assert (fast.kind == ObjectKind.CELL).sum() == summary["objectTypeCounts"]["Cells"]
    counts = fast.take(fast.kind == ObjectKind.ANNOTATION).class_counts()
    assert {k or "Unclassified": v for k, v in counts.items()} == summary["annotationClassificationCounts"]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_qupath_says(golden, version):
    folder = golden(f"golden_{version}")
    said = [json.loads(line) for line in (folder / "what_qupath_says.jsonl").read_text(encoding="utf-8").splitlines()]
    project_said = next(r for r in said if r["record"] == "project")
    images_said = [r for r in said if r["record"] == "image"]
    with QuPathProject.open(folder) as project:
        colors = {name: "#%02x%02x%02x" % rgb for name, rgb in project.classes.items()}  # noqa: UP031
        assert colors == {c["name"]: c["color"] for c in project_said["path_classes"]}
        assert [(str(e.id), e.name) for e in project.entries] == [(i["id"], i["name"]) for i in images_said]
        for entry, image in zip(project.entries, images_said, strict=True):
            assert entry.size == (image["width"], image["height"])
            assert entry.mpp is None and image["pixel_width_unit"] == "px"
            data = entry.read_image_data()
            check_objects(data.objects, image)
            assert data.image_type == image["image_type_name"]
            assert {k: str(v) for k, v in data.properties.items()} == image["properties"]
            # 0.6 and later note steps of their own as they open an image
            added = image["workflow_steps"] - len(data.workflow)
            assert added == 0 if version < "v0.6" else added >= 0
            assert all(step.name and step.script for step in data.workflow)
            assert data.tma_grid == (tuple(image["tma_grid"]) if image["tma_grid"] else None)
            assert (data.stains is None) == (image["stains"] is None)
            for name, vector in data.stains.stains if data.stains else []:
                assert f"{name}: {' '.join(f'{v:.3f}'.rstrip('0') for v in vector)}" in image["stains"]


def check_objects(objects: PathObjects, image):
    assert len(objects) == image["n_objects"] == len(image["first"])
    assert objects.locked.sum() == image["n_locked"]
    for name, entry in image["classes"].items():
        if entry["color"]:
            assert "#%02x%02x%02x" % objects.class_colors[name] == entry["color"]  # noqa: UP031
    children = np.bincount(objects.parent[objects.parent >= 0], minlength=len(objects))
    level = np.zeros(len(objects), int)
    for i in range(len(objects)):
        level[i] = 1 if objects.parent[i] < 0 else level[objects.parent[i]] + 1
    for i, said in enumerate(image["first"]):
        assert objects.ids[i] == said["id"]
        assert objects.kind[i] == KIND_NAMES[said["type"]]
        assert objects.names[i] == said["name"]
        assert objects.classes[i] == said["class"]
        np.testing.assert_equal(objects.probability[i], float(said["class_probability"]))
        assert objects.locked[i] == said["locked"]
        assert children[i] == said["n_children"] and level[i] == said["level"]
        metadata = {k: v[i] for k, v in objects.metadata.items() if v[i] is not None}
        assert metadata == said.get("metadata", metadata)  # 0.4 has no public access to it
        for name, value in said["measurements"].items():
            np.testing.assert_equal(objects.measurements[name][i], float(value))
        absent = [n for n in objects.measurements if n not in said["measurements"]]
        assert all(np.isnan(objects.measurements[n][i]) for n in absent)
        color = None if objects.colors[i] < 0 else f"#{objects.colors[i] & 0xFFFFFF:06x}"
        assert color == said["color"]
        outlines = objects.polygons
        if objects.roi_kind[i] in LINES:
            assert len(outlines.take([i]).ring_offsets) == 1
            outlines = objects.lines
        check_roi(outlines, objects.roi_kind[i], objects.plane[i], i, said["roi"])
        if "nucleus" in said:
            check_roi(objects.nuclei, RoiKind.POLYGON, objects.plane[i], i, said["nucleus"])


def check_roi(polygons: Polygons, kind, plane, i, said):
    assert kind == ROI_NAMES[said["type"]]
    assert plane.tolist() == [said["c"], said["z"], said["t"]]
    one = polygons.take([i])
    x, y, width, height = said["bounds"]
    np.testing.assert_allclose(one.bounds()[0], [x, y, x + width, y + height], rtol=1e-7)
    if kind in LINES:
        assert len(one.coords) == said["n_points"]
        return
    # an ellipse is a polygon here
    np.testing.assert_allclose(one.area()[0], said["area"], rtol=5e-4 if kind == RoiKind.ELLIPSE else 1e-6)
    if kind == RoiKind.POLYGON:
        assert len(one.coords) == said["n_points"]


def without(item):
    """Plain form of a node for comparison, independent of handles."""
    if isinstance(item, Text):
        return str(item)
    if isinstance(item, Instance):
        return (item.desc.name, [without(d) for d in item.data])
    if isinstance(item, (list, tuple)):
        return [without(d) for d in item]
    if hasattr(item, "data"):
        return without(item.data)
    if hasattr(item, "constant"):
        return without(item.constant)
    return item if isinstance(item, (bytes, int, str)) else type(item).__name__


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_of_a_person_stay_node_for_node(golden, version):
    folder = golden(f"golden_{version}")
    with QuPathProject.open(folder, "r+") as project:
        entry = project.entry("rich")
        before = Reader((entry.folder / "data.qpdata").read_bytes()).read()
        old = entry.read_objects()
        rng = np.random.default_rng(0)
        centres = rng.random((500, 2)) * 500
        coords = (centres[:, None] + [[0, 0], [5, 0], [5, 5], [0, 6]]).reshape(-1, 2).astype(np.float32)
        new = PathObjects.build(
            Polygons.from_rings(coords, np.arange(0, 2001, 4)),
            classes=["Tumor", "Neoplastic"] * 250,
            measurements={"A": rng.random(500), "Nucleus: Area": rng.random(500)},
        )
        entry.write_objects(new, lambda present: present.kind == ObjectKind.DETECTION)
    with QuPathProject.open(folder) as project:
        entry = project.entry("rich")
        after = Reader((entry.folder / "data.qpdata").read_bytes()).read()
        read = entry.read_objects()
    kept = old.take(old.kind != ObjectKind.DETECTION)
    assert read.ids.tolist() == kept.ids.tolist() + new.ids.tolist()
    # everything but the hierarchy
    at = next(i for i, item in enumerate(before) if is_hierarchy(item))
    assert without(before[:at] + before[at + 1 :]) == without(after[:at] + after[at + 1 :])
    old_nodes = {repr(without(c)) for c in children_of(before[at])}
    new_nodes = [repr(without(c)) for c in children_of(after[at])]
    dropped = int((old.kind == ObjectKind.DETECTION).sum())
    assert len(old_nodes.intersection(new_nodes)) == len(old_nodes) - dropped
    # QuPath keeps one colour for a class of one name: the first
    assert read.class_colors["Tumor"] == old.class_colors["Tumor"]
    content = json.loads((folder / "project.qpproj").read_text(encoding="utf-8"))
    assert {c["name"] for c in json.loads((folder / "classifiers/classes.json").read_text())["pathClasses"]} == {
        "Tumor",
        "Tumor: Positive",
        "Stroma",
        "Neoplastic",
    }
    assert len(content["images"]) == 3


def is_hierarchy(item) -> bool:
    return isinstance(item, Instance) and item.desc.name.endswith("PathObjectHierarchy")


def children_of(hierarchy: Instance):
    root = hierarchy.get("rootObject")
    parts = Parts(root)
    return root.data[parts.start : parts.stop]


def test_tma_cores_stay(golden):
    folder = golden("golden_v0.5.1")
    with QuPathProject.open(folder, "r+") as project:
        entry = project.entry("tma")
        new = PathObjects.build(Polygons.from_shapely([shapely.box(0, 0, 5, 5)]))
        from stqp.errors import InputError

        with pytest.raises(InputError, match="TMA"):
            entry.write_objects(new, lambda present: present.kind == ObjectKind.TMA_CORE)
        entry.write_objects(new)
        assert entry.read_objects().kind.tolist() == [4, 4, 4, 4, 0]
    items = Reader((folder / "data" / "3" / "data.qpdata").read_bytes()).read()
    hierarchy = next(item for item in items if is_hierarchy(item))
    cores = hierarchy.get("tmaGrid").get("cores").data[-1][2][1:]
    assert [c is k for c, k in zip(cores, children_of(hierarchy)[:4], strict=True)] == [True] * 4


@pytest.mark.parametrize("version", VERSIONS)
def test_opening_a_project_of_qupath_changes_nothing(golden, version):
    folder = golden(f"golden_{version}")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with QuPathProject.open(folder, "r+"):
        pass
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
