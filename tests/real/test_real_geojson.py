"""QuPath's own GeoJSON exports, beside what the same projects hold."""

import json

import numpy as np
import pytest

from stqp.qupath.geojson import write_geojson
from stqp.qupath.geojson_read import read_geojson
from stqp.qupath.objects import ObjectKind, RoiKind
from stqp.qupath.qpdata import read_objects


@pytest.fixture
def demo(real_data):
    folder = real_data / "qupath" / "v0.6.0_cells_demo"
    if not (folder / "Single_cells.geojson").exists():
        pytest.skip(f"{folder} is missing")
    return folder


def vertices(polygons, i):
    one = polygons.take([i])
    return [one.coords[a:b] for a, b in zip(one.ring_offsets[:-1], one.ring_offsets[1:], strict=True)]


def same_rings(a, b, tolerance):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        if (x[0] == x[-1]).all():
            x = x[:-1]
        assert x.shape == y.shape
        # QuPath may begin a ring elsewhere
        start = np.argmin(np.abs(x - y[0]).sum(axis=1))
        turned = np.roll(x, -start, axis=0)
        backwards = np.roll(x[::-1], start + 1, axis=0)
        assert min(np.abs(turned - y).max(), np.abs(backwards - y).max()) <= tolerance


def test_the_export_agrees_with_the_project_object_by_object(demo):
    stored = read_objects(demo / "data" / "1" / "data.qpdata")
    exported = read_geojson(demo / "Single_cells.geojson")
    place = {identity: i for i, identity in enumerate(stored.ids.tolist())}
    common = [i for i, identity in enumerate(exported.ids.tolist()) if identity in place]
    assert len(common) == len(exported) > 100
    assert (exported.kind == ObjectKind.CELL).sum() == 121
    for i in common:
        j = place[exported.ids[i]]
        assert exported.kind[i] == stored.kind[j] and exported.classes[i] == stored.classes[j]
        assert exported.names[i] == stored.names[j] and exported.locked[i] == stored.locked[j]
        assert exported.roi_kind[i] == stored.roi_kind[j]
        assert exported.plane[i].tolist() == stored.plane[j].tolist() and exported.colors[i] == stored.colors[j]
        same_rings(vertices(exported.polygons, i), vertices(stored.polygons, j), 0.0051)
        if stored.nuclei is not None:
            same_rings(vertices(exported.nuclei, i), vertices(stored.nuclei, j), 0.0051)
        for name in {*stored.measurements, *exported.measurements}:
            ours = exported.measurements.get(name, np.full(len(exported), np.nan))[i]
            theirs = stored.measurements.get(name, np.full(len(stored), np.nan))[j]
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=name)
    for name in {c for c in exported.classes.tolist() if c}:
        assert exported.class_colors[name] == stored.class_colors[name]


def test_an_export_is_written_again_as_it_was(demo, tmp_path):
    for path in sorted(demo.glob("*.geojson")):
        before = read_geojson(path)
        result = write_geojson(tmp_path / path.name, before)
        assert result == (len(before), 0, 0)
        said, ours = (json.loads(p.read_text(encoding="utf-8"))["features"] for p in (path, tmp_path / path.name))
        for one, other in zip(said, ours, strict=True):
            assert one["id"] == other["id"] and one["geometry"]["type"] == other["geometry"]["type"]
            properties = one["properties"]
            for values in (properties.get("measurements", {}), other["properties"].get("measurements", {})):
                for name in [n for n, v in values.items() if isinstance(v, str) or v != v]:
                    del values[name]
            if not properties.get("measurements", True):
                del properties["measurements"]
            assert other["properties"].get("measurements", {}) == properties.pop("measurements", {})
            other["properties"].pop("measurements", None)
            assert {**other["properties"]} == properties


@pytest.mark.parametrize("version", ["v0.4.4", "v0.5.1", "v0.6.0", "v0.7.0"])
def test_golden_objects_come_back(real_data, tmp_path, version):
    folder = real_data / "qupath" / f"golden_{version}"
    if not folder.exists():
        pytest.skip(f"{folder} is missing")
    for path in sorted(folder.rglob("data.qpdata")):
        stored = read_objects(path)
        shapes = stored.roi_kind != RoiKind.NONE
        result = write_geojson(tmp_path / "o.geojson", stored)
        assert result.written == shapes.sum() - result.left_out + (~shapes).sum()
        read = read_geojson(tmp_path / "o.geojson")
        place = {identity: i for i, identity in enumerate(read.ids.tolist())}
        for i, identity in enumerate(stored.ids.tolist()):
            if identity not in place:
                continue
            j = place[identity]
            for column in ("kind", "names", "classes", "locked"):
                assert getattr(read, column)[j] == getattr(stored, column)[i], column
            np.testing.assert_equal(read.probability[j], stored.probability[i])
            assert read.plane[j].tolist() == stored.plane[i].tolist()
            np.testing.assert_allclose(read.polygons.bounds()[j], stored.polygons.bounds()[i], atol=6e-4)
            np.testing.assert_allclose(read.polygons.area()[j], stored.polygons.area()[i], rtol=2e-3)
            parent = stored.parent[i]
            if parent < 0 or stored.ids[parent] in place:
                expected = None if parent < 0 else stored.ids[parent]
                assert (None if read.parent[j] < 0 else read.ids[read.parent[j]]) == expected
