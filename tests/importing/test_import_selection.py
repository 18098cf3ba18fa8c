"""Imports of a part of a run: regions, filters, and what they note."""

import json

import numpy as np
import pytest
import shapely
from importing.test_import_run import objects_of, run

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import owned
from stqp.qupath.project import QuPathProject
from stqp.taxonomy import UNKNOWN


def centers(project):
    objects = objects_of(project)
    mine = objects.take(owned(objects))
    return mine.polygons.centroid(), mine


def test_a_region_of_explorer(sample, tmp_path):
    everything = run(sample, tmp_path / "all")
    description = json.loads(next((tmp_path / "all").glob("stqp/*/sample.json")).read_text())
    to_he = np.array(description["um_to_he"])
    corners = np.array([[40.0, 30, 1], [140, 30, 1], [140, 120, 1], [40, 120, 1]])
    (tmp_path / "r.csv").write_text(
        "#Selection name: a\n#Area (µm^2): 9000\nSelection,X,Y\n" + "\n".join(f"a,{x},{y}" for x, y, _ in corners),
        encoding="utf-8",
    )
    record = run(sample, tmp_path / "part", region=tmp_path / "r.csv")
    shape = shapely.Polygon((corners @ to_he.T)[:, :2])
    whole, _ = centers(tmp_path / "all")
    part, _ = centers(tmp_path / "part")
    inside = shapely.contains_xy(shape, whole[:, 0], whole[:, 1])
    assert 0 < inside.sum() < len(whole)
    np.testing.assert_allclose(np.sort(part, axis=0), np.sort(whole[inside], axis=0))
    assert record.skipped["nuclei outside of the region"] == len(whole) - inside.sum()
    assert everything.counts["nuclei written"] == len(whole)
    noted = json.loads(next((tmp_path / "part").glob("stqp/*/sample.json")).read_text())
    expected = shape.intersection(shapely.Polygon(description["coverage"][0]))
    assert shapely.Polygon(noted["coverage"][0]).symmetric_difference(expected).area < 0.01 * expected.area


def test_a_region_with_a_hole_is_covered_without_it(sample, tmp_path):
    ring = shapely.box(100, 100, 800, 700) - shapely.box(300, 300, 500, 500)
    (tmp_path / "r.geojson").write_text(shapely.to_geojson(ring))
    run(sample, tmp_path / "p", region=tmp_path / "r.geojson")
    noted = json.loads(next((tmp_path / "p").glob("stqp/*/sample.json")).read_text())
    covered = shapely.union_all([shapely.Polygon(r) for r in noted["coverage"]])
    assert covered.difference(ring).area < 1
    assert not covered.contains(shapely.Point(400, 400)) and covered.area > 0.9 * ring.area


def test_a_region_drawn_in_qupath(sample, tmp_path):
    project = tmp_path / "p"
    with pytest.raises(InputError, match="does not exist yet"):
        run(sample, project, region="annotation:Region")
    run(sample, project)
    box = shapely.box(200, 200, 600, 600)
    with QuPathProject.open(project, "r+") as opened:
        drawn = PathObjects.build(Polygons.from_shapely([box]), classes="Region", names=["here"])
        opened.entries[0].write_objects(drawn)
    with pytest.raises(InputError, match="'Other'"):
        run(sample, project, region="annotation:Other")
    for name in ("Region", "here"):
        run(sample, project, region=f"annotation:{name}")
        xy, _ = centers(project)
        assert len(xy) > 10 and shapely.contains_xy(box, xy[:, 0], xy[:, 1]).all()
    assert (objects_of(project).classes == "Region").sum() == 1
    # and all of it comes back
    run(sample, project)
    assert len(centers(project)[0]) > len(xy)


def test_filters_leave_out_and_make_unknown(sample, tmp_path):
    run(sample, tmp_path / "all")
    _, everything = centers(tmp_path / "all")
    few = np.median(everything.measurements["Transcripts"])
    area = np.quantile(everything.measurements["Nucleus: Area µm^2"], 0.2)
    record = run(sample, tmp_path / "some", min_transcripts=int(few), min_area=area, as_kind="detections")
    _, some = centers(tmp_path / "some")
    assert (some.kind == ObjectKind.DETECTION).all()
    kept = everything.measurements["Nucleus: Area µm^2"] >= area
    assert len(some) == kept.sum() and any("µm²" in reason for reason in record.skipped)
    sparse = some.measurements["Transcripts"] < int(few)
    assert (some.classes[sparse] == UNKNOWN).all() and not (some.classes[~sparse] == UNKNOWN).all()
    with pytest.raises(InputError, match="leave no nucleus"):
        run(sample, tmp_path / "none", min_area=1e6)
    assert not (tmp_path / "none").exists()


def test_stain_and_tissue(sample, tmp_path):
    record = run(sample, tmp_path / "p", min_stain=0.05, tissue_only=True)
    xy, stained = centers(tmp_path / "p")
    contrast = stained.measurements["Alignment: stain contrast"]
    assert np.nanmin(contrast) >= 0.05
    assert record.counts["nuclei written"] == len(xy) > 100
    with pytest.raises(UsageError, match="--no-qc"):
        run(sample, tmp_path / "q", min_stain=0.05, qc=False)


def test_a_region_of_another_slide(sample, tmp_path):
    (tmp_path / "r.geojson").write_text(shapely.to_geojson(shapely.box(90_000, 0, 91_000, 500)))
    with pytest.raises(InputError, match="another slide"):
        run(sample, tmp_path / "p", region=tmp_path / "r.geojson")
    assert not (tmp_path / "p").exists()
