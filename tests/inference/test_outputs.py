"""What is written of a slide's nuclei beside the project: tables, TIAToolbox's store, overlays, cells."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import shapely
from perfect_maps import CLASSES, grid_of_nuclei
from PIL import Image

from stqp.alignment.stain import EOSIN, HAEMATOXYLIN
from stqp.errors import EnvironmentProblem
from stqp.inference.annotation_store import write_annotation_store
from stqp.inference.cells import expand
from stqp.inference.class_overlay import write_overlay
from stqp.inference.detections import HAEMATOXYLIN as STAIN
from stqp.inference.detections import Detections
from stqp.inference.stain import with_haematoxylin
from stqp.inference.table import write_table
from stqp.inference.writing import to_objects
from stqp.pixels import pixel_means
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.qupath.exchange_tables import read_parquet
from stqp.qupath.objects import ObjectKind
from stqp.shapes import eccentricity, solidity
from stqp.slides import open_slide
from stqp.taxonomy import UNKNOWN_COLOR, color_of

COLORS = {name: color_of(name) for name in CLASSES}


def detections(side=600, count=14, mpp=0.5, seed=2, empty=False):
    inst = grid_of_nuclei(side, count, seed=seed)
    polygons, _ = polygonise(inst)
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.full(len(CLASSES) + 1, 0.5), len(polygons))
    prob[::10] = [1, 0, 0, 0]  # no class
    found = Detections(polygons, prob, CLASSES, mpp)
    return found.take(np.empty(0, int)) if empty else found


def test_shapes_equal_those_of_their_pixels():
    from skimage.draw import ellipse
    from skimage.measure import regionprops

    image = np.zeros((300, 700), int)
    for number, (a, b, turn) in enumerate([(40, 40, 0), (50, 20, 0.5), (60, 9, 1.2), (30, 25, 2.0)], start=1):
        image[ellipse(150, 90 + 160 * (number - 1), a, b, rotation=turn, shape=image.shape)] = number
    polygons, _ = polygonise(image)
    expected = [region.eccentricity for region in regionprops(image)]
    np.testing.assert_allclose(eccentricity(polygons), expected, atol=0.01)
    np.testing.assert_allclose(eccentricity(polygons.shift(1e5, 2e5)), eccentricity(polygons), atol=1e-6)
    hulls = [shapely.convex_hull(p).area for p in polygons.to_shapely()]
    np.testing.assert_allclose(solidity(polygons), polygons.area() / hulls)
    bent = Polygons.from_rings([[0, 0], [10, 0], [10, 2], [2, 2], [2, 10], [0, 10]], [0, 6])
    assert solidity(bent)[0] == pytest.approx(36 / (100 - 32))
    assert np.isnan(solidity(Polygons.empty(1))[0]) and np.isnan(eccentricity(Polygons.empty(1))[0])


@pytest.fixture
def stained(tmp_path):
    """A slide with haematoxylin in its nuclei, of a known density each, and eosin between them."""
    found = detections(count=12)
    inst = found.instance_map(600, 600)
    density = np.concatenate([[0.0], np.linspace(0.3, 1.2, len(found))])
    hematoxylin, eosin = HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN), EOSIN / np.linalg.norm(EOSIN)
    total = density[inst][..., None] * hematoxylin + np.where(inst > 0, 0.05, 0.35)[..., None] * eosin
    path = tmp_path / "stained.png"
    Image.fromarray(np.clip(np.rint(256 * 10**-total - 1), 0, 255).astype(np.uint8)).save(path)
    return path, found, density[1:]


def test_haematoxylin_is_that_of_the_nuclei(stained):
    path, found, density = stained
    with open_slide(path, mpp=0.5) as slide:
        measured, _ = with_haematoxylin(found, slide)
        values = np.random.default_rng(0).random((600, 600))
        whole, cut = (pixel_means(slide, found.polygons, lambda i: values[: i.shape[0], : i.shape[1]], 1, t)
                      for t in (600, 600))  # fmt: skip
        red = [pixel_means(slide, found.polygons, lambda i: i.astype(float), 1, tile) for tile in (97, 2048)]
    assert np.corrcoef(measured.haematoxylin, density)[0, 1] > 0.999
    np.testing.assert_allclose(measured.haematoxylin, density, atol=0.1)
    assert measured.measurements[STAIN] is measured.haematoxylin
    inst = found.instance_map(600, 600)
    slow = [values[inst == i].mean() for i in range(1, len(found) + 1)]
    np.testing.assert_allclose(whole, slow)
    np.testing.assert_allclose(red[0], red[1])
    assert red[0].shape == (len(found), 3)
    np.testing.assert_array_equal(cut, whole)


def test_the_table_holds_every_nucleus_and_is_read_by_others(tmp_path):
    import geopandas
    import pyarrow.parquet as pq

    found = detections()
    objects = to_objects(found, "one.svs", "model", COLORS)
    write_table(tmp_path / "t.parquet", found, objects.ids, "one.svs", "model", COLORS)
    frame = geopandas.read_parquet(tmp_path / "t.parquet")
    assert frame["id"].tolist() == objects.ids.tolist() and set(frame["image"]) == {"one.svs"}
    names = ["Unknown" if name is None else name for name in found.class_names]
    assert frame["class"].tolist() == names and frame["probability"].isna().sum() == (found.class_ids == 0).sum() > 0
    np.testing.assert_allclose(frame[[f"Probability: {c}" for c in CLASSES]], found.class_prob[:, 1:])
    np.testing.assert_allclose(frame[["centroid_x_um", "centroid_y_um"]], found.polygons.centroid() * 0.5)
    np.testing.assert_allclose(frame[["box_x0", "box_y0", "box_x1", "box_y1"]], frame.geometry.bounds)
    np.testing.assert_allclose(frame.geometry.area * 0.25, frame["Nucleus: Area µm^2"])
    for name in ("Perimeter µm", "Circularity", "Eccentricity", "Solidity"):
        assert frame[f"Nucleus: {name}"].notna().all()
    told = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"stqp"])
    assert told["classes"] == CLASSES and told["mpp"] == 0.5 and told["colors"]["Connective"] == [40, 90, 220]
    again = read_parquet(tmp_path / "t.parquet")
    assert (again.kind == ObjectKind.DETECTION).all() and "box_x0" not in again.measurements
    write_table(tmp_path / "t.parquet", detections(empty=True), np.empty(0, object), "one.svs", "model", COLORS)
    assert len(geopandas.read_parquet(tmp_path / "t.parquet")) == 0


@pytest.fixture
def store_class(monkeypatch):
    from tiatoolbox.annotation.storage import SQLiteStore

    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        # TIAToolbox asks for it, of Pythons that lack it too, only to list how SQLite was compiled
        with sqlite3.connect(":memory:") as connection:
            options = [option for (option,) in connection.execute("pragma compile_options")]
        monkeypatch.setattr(SQLiteStore, "compile_options", staticmethod(lambda: options))
    return SQLiteStore


def test_tiatoolbox_reads_the_annotation_store(tmp_path, store_class):
    found = detections()
    ids = to_objects(found, "one.svs", "model", COLORS).ids
    write_annotation_store(tmp_path / "t.db", found, ids)
    store = store_class(tmp_path / "t.db")
    assert len(store) == len(found) and set(store.keys()) == set(ids)
    shapes = found.polygons.to_shapely()
    for number in range(0, len(found), 7):
        annotation = store[ids[number]]
        assert annotation.geometry.equals(shapes[number])
        name = found.class_names[number]
        assert annotation.properties["type"] == (name or "Unknown")
        assert annotation.properties.get("prob") == (
            None if name is None else pytest.approx(found.probability[number], abs=1e-4)
        )
        area = found.measurements["Nucleus: Area µm^2"][number]
        assert annotation.properties["Nucleus: Area µm^2"] == pytest.approx(area, abs=1e-4)
    box = (100, 100, 250, 200)
    tree = shapely.STRtree(shapes)
    assert set(store.query(box)) == set(ids[tree.query(shapely.box(*box), predicate="intersects")])
    dead = store.query((0, 0, 600, 600), where='props["type"] == "Connective"')
    assert len(dead) == (found.class_names == "Connective").sum()
    store.close()
    write_annotation_store(tmp_path / "t.db", detections(empty=True), np.empty(0, object))
    assert len(store_class(tmp_path / "t.db")) == 0


def test_the_annotation_store_has_tiatoolboxs_layout(tmp_path, store_class):
    from tiatoolbox.annotation.storage import Annotation

    theirs = store_class(tmp_path / "theirs.db")
    found = detections().take([3])
    theirs.append_many([Annotation(found.polygons.to_shapely()[0], {"type": "A"})], ["k"])
    theirs.close()
    write_annotation_store(tmp_path / "ours.db", found, np.array(["k"], object))

    def content(path):
        with sqlite3.connect(path) as connection:
            layout = {
                name: [column[1:4] for column in connection.execute(f"pragma table_info({name})")]
                for name in ("metadata", "annotations", "rtree")
            }
            row = connection.execute("SELECT key, objtype, cx, cy, area FROM annotations").fetchone()
            box = connection.execute("SELECT * FROM rtree").fetchone()
            keys = {key for (key,) in connection.execute("SELECT key FROM metadata")}
        return layout, row[:2], pytest.approx(row[2:]), box, keys

    ours, theirs_content = content(tmp_path / "ours.db"), content(tmp_path / "theirs.db")
    assert ours[:2] == theirs_content[:2] and ours[3:] == theirs_content[3:]
    assert ours[2].expected == theirs_content[2]


def test_the_overlay_shows_the_classes_and_is_a_pyramid(tmp_path):
    import openslide
    import tifffile

    found = detections(side=1500, count=36, mpp=0.25)
    path = tmp_path / "o.ome.tif"
    write_overlay(path, found, (1501, 1499), COLORS, 0.5)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        assert [level.shape for level in series.levels] == [(750, 751, 4), (375, 376, 4)]
        assert file.is_bigtiff and file.pages[0].is_tiled
        fine, coarse = (level.asarray() for level in series.levels)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5) and len(slide.level_sizes) == 2
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.dimensions == (751, 750)
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, (751, 750))), fine)
    palette = np.array([UNKNOWN_COLOR, *COLORS.values()])
    x, y = (found.polygons.centroid() / 2).astype(int).T
    np.testing.assert_array_equal(fine[y, x, :3], palette[found.class_ids])
    assert (fine[y, x, 3] == 255).all() and set(np.unique(fine[..., 3])) == {0, 255}
    covered = found.polygons.area().sum() / (1501 * 1499)
    assert (fine[..., 3] / 255).mean() == pytest.approx(covered, rel=0.02)
    assert (coarse[..., 3] / 255).mean() == pytest.approx(covered, rel=0.02)
    write_overlay(path, found, (1501, 1499), COLORS, 8)  # a pixel holds several nuclei
    dots = tifffile.imread(path)
    assert dots.shape == (47, 47, 4) and (dots[..., 3] / 255).mean() == pytest.approx(covered, rel=0.1)
    write_overlay(path, detections(empty=True), (300, 200), COLORS)
    assert not tifffile.imread(path).any()


def slow_cells(nuclei, distance, size):
    """Which pixels each cell should hold: those near its nucleus that no other is nearer to."""
    tree = shapely.STRtree(nuclei)
    for number, nucleus in enumerate(nuclei):
        x0, y0, x1, y1 = (int(v) for v in nucleus.buffer(distance).bounds)
        columns, rows = np.arange(max(x0 - 1, 0), min(x1 + 2, size)), np.arange(max(y0 - 1, 0), min(y1 + 2, size))
        points = shapely.points(*(v.ravel() + 0.5 for v in np.meshgrid(columns, rows)))
        own = shapely.distance(points, nucleus)
        mine = own <= distance
        for other in tree.query(nucleus.buffer(2 * distance)):
            if other != number:
                mine &= own <= shapely.distance(points, nuclei[other])
        yield points, mine


def test_cells_grow_until_they_meet():
    found = detections(count=20)
    nuclei = found.polygons.to_shapely()
    cells = expand(found.polygons, 8, 1.0, (600, 600))
    grown = cells.to_shapely()
    assert len(cells) == len(found) and shapely.is_valid(grown).all()
    # no two overlap, each holds its nucleus but for the corners of its pixels, none leaves the image
    a, b = shapely.STRtree(grown).query(grown, predicate="overlaps")
    assert not len(a) or shapely.area(shapely.intersection(grown[a], grown[b])).max() < 1e-9
    assert shapely.area(shapely.difference(nuclei, grown)).max() < 0.5
    x0, y0, x1, y1 = cells.bounds().T
    assert x0.min() >= 0 and y0.min() >= 0 and x1.max() <= 600 and y1.max() <= 600
    agreement = []
    for cell, (points, mine) in list(zip(grown, slow_cells(nuclei, 8, 600), strict=True))[::9]:
        inside = shapely.contains(cell, points)
        agreement.append((inside & mine).sum() / (inside | mine).sum())
    # they differ in pixels of the rim, a twentieth of a cell of this size
    assert np.mean(agreement) > 0.97 and np.min(agreement) > 0.95
    np.testing.assert_array_equal(expand(found.polygons, 8, 1.0, (600, 600), block=130).coords, cells.coords)
    twice = expand(found.polygons.scale(2), 16, 2.0, (1200, 1200))
    np.testing.assert_allclose(twice.coords, 2 * cells.coords)


def test_cells_of_nuclei_that_touch_alone_and_of_none():
    touching = Polygons.from_rings(
        [[10, 10], [20, 10], [20, 20], [10, 20], [20, 10], [30, 10], [30, 20], [20, 20]], [0, 4, 8]
    )
    left, right = expand(touching, 5).to_shapely()
    assert left.bounds[2] == right.bounds[0] == 20 and left.area == pytest.approx(right.area, rel=0.01)
    (alone,) = expand(touching.take([0]), 5).to_shapely()
    assert alone.area == pytest.approx(shapely.box(10, 10, 20, 20).buffer(5).area, rel=0.02)
    assert len(expand(Polygons.empty(), 5)) == 0
    tiny = Polygons.from_rings([[5.6, 5.6], [5.9, 5.6], [5.9, 5.9]], [0, 3])
    np.testing.assert_allclose(expand(tiny, 5).coords, tiny.coords)


def test_cells_become_cells_of_qupath(tmp_path):
    from dataclasses import replace

    found = detections()
    cells = replace(found, cells=expand(found.polygons, 6, 1.0, (600, 600)))
    objects = to_objects(cells, "one.svs", "model", COLORS)
    assert (objects.kind == ObjectKind.CELL).all()
    np.testing.assert_array_equal(objects.nuclei.coords, found.polygons.coords)
    ratio = objects.measurements["Nucleus/Cell area ratio"]
    assert (ratio > 0).all() and (ratio < 1).all()
    np.testing.assert_allclose(
        objects.measurements["Cell: Area µm^2"] * ratio, objects.measurements["Nucleus: Area µm^2"]
    )
    disc, _ = polygonise((np.hypot(*np.mgrid[-40:41, -40:41]) <= 20).astype(int))
    one = Detections(disc, np.array([[0, 1.0, 0, 0]]), CLASSES, 0.5, cells=expand(disc, 10))
    assert one.measurements["Cell: Perimeter µm"][0] == pytest.approx(2 * np.pi * 30 * 0.5, rel=0.04)
    assert one.measurements["Cell: Circularity"][0] > 0.92
    write_table(tmp_path / "c.parquet", cells, objects.ids, "one.svs", "model", COLORS)
    again = read_parquet(tmp_path / "c.parquet")
    assert (again.kind == ObjectKind.CELL).all() and again.nuclei is not None
    np.testing.assert_allclose(again.nuclei.area(), found.polygons.area())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path):
    import resource
    import signal

    found = detections(count=20)
    ids = to_objects(found, "a", "m").ids
    writers = {
        "t.parquet": lambda p: write_table(p, found, ids, "a", "m", COLORS),
        "t.db": lambda p: write_annotation_store(p, found, ids),
        "t.ome.tif": lambda p: write_overlay(p, found, (600, 600), COLORS, 0.5),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for name, write in writers.items():
            (tmp_path / name).write_bytes(b"the file that was there")
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
            try:
                with pytest.raises(EnvironmentProblem, match=name):
                    write(tmp_path / name)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert (tmp_path / name).read_bytes() == b"the file that was there"
            write(tmp_path / name)
            assert (tmp_path / name).stat().st_size > 4096
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(writers)
