"""Objects for tests: every kind of column, in any number."""

import numpy as np

from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects, RoiKind


def discs(centres, radius, vertices):
    """Make regular polygons; `vertices` is a number or one for each, positions are float32-exact."""
    centres = np.asarray(centres, float)
    counts = np.broadcast_to(vertices, len(centres))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    owner = np.repeat(np.arange(len(centres)), counts)
    angle = 2 * np.pi * (np.arange(offsets[-1]) - offsets[owner]) / counts[owner]
    coords = centres[owner] + radius * np.column_stack([np.cos(angle), np.sin(angle)])
    return Polygons.from_rings(coords.astype(np.float32), offsets)


def many(n, seed=0, kind=None):
    """Make `n` objects of mixed kinds with mixed columns, leaves of the root."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([0, 1, 2, 3], n).astype(np.uint8) if kind is None else np.full(n, kind, np.uint8)
    centres = rng.random((n, 2)) * 20000
    polygons = discs(centres, 8.0, rng.integers(3, 30, n))
    nuclei = discs(centres, 4.0, rng.integers(3, 12, n))
    has = (kinds == ObjectKind.CELL) & (rng.random(n) < 0.8)
    empty = Polygons.empty(1)
    nuclei = Polygons.concatenate([nuclei, empty]).take(np.where(has, np.arange(n), n))
    maybe = np.where(rng.random(n) < 0.3, None, np.array([f"note é{i}" for i in range(n)], object))
    area, score = rng.random(n), rng.random(n)
    score[kinds == ObjectKind.ANNOTATION] = np.nan
    objects = PathObjects.build(
        polygons,
        kind=kinds,
        classes=rng.choice(np.array(["Neoplastic", "Tumor: Positive", "Stroma: A: B", None], object), n),
        names=np.where(rng.random(n) < 0.9, None, np.array([f"name {i}" for i in range(n)], object)),
        probability=np.where(rng.random(n) < 0.5, np.nan, rng.random(n)),
        locked=rng.random(n) < 0.2,
        nuclei=nuclei if has.any() else None,
        metadata={
            "source": "run:1",
            "cell": [f"cell-{i}" for i in range(n)],
            "note": maybe,
            "batch": rng.choice(np.array(["a", "b", None], object), n),
        },
        measurements={"Area µm²": area, "Score": score},
        class_colors={"Tumor: Positive": (250, 62, 62), "Neoplastic": (220, 30, 40)},
    )
    objects.plane[:, 1] = rng.integers(0, 2, n)
    return objects


def same(a, b, order=None):
    """Assert that two sets of objects are equal, to the precision of the file."""
    if order is not None:
        b = b.take(order)
    assert len(a) == len(b)
    np.testing.assert_array_equal(a.kind, b.kind)
    for column in ("ids", "names", "classes", "locked", "parent", "plane"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
    np.testing.assert_array_equal(a.probability, b.probability)
    for x, y in ((a.polygons, b.polygons), (a.nuclei or Polygons.empty(len(a)), b.nuclei or Polygons.empty(len(b)))):
        np.testing.assert_array_equal(x.geom_offsets, y.geom_offsets)
        np.testing.assert_array_equal(x.ring_offsets, y.ring_offsets)
        np.testing.assert_allclose(x.coords, y.coords, rtol=1e-7)
    for left, right in ((a.metadata, b.metadata), (b.metadata, a.metadata)):
        for key, texts in left.items():
            np.testing.assert_array_equal(texts, right.get(key, np.full(len(a), None, object)), err_msg=key)
    for left, right in ((a.measurements, b.measurements), (b.measurements, a.measurements)):
        for key, values in left.items():
            np.testing.assert_allclose(values, right.get(key, np.full(len(a), np.nan)), rtol=1e-6, err_msg=key)


def geometry_objects():
    """Make a polygon with a hole, two parts, a rectangle, an ellipse, and an ellipse that was turned."""
    import shapely

    hole = shapely.Polygon([(0, 0), (100, 0), (100, 100), (0, 100)], [[(20, 20), (20, 40), (40, 40), (40, 20)]])
    parts = shapely.MultiPolygon([shapely.box(200, 0, 210, 10), shapely.box(220, 0, 230.5, 10)])
    from stqp.qupath.codec.decode import ellipse

    round_one = ellipse(300.0, 10.0, 340.0, 30.0)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    rings = [shapely.Polygon(r) for r in (round_one, round_one @ turn)]
    objects = PathObjects.build(Polygons.from_shapely([hole, parts, shapely.box(5, 6, 7, 8.5), *rings]))
    objects.roi_kind[2:] = [RoiKind.RECTANGLE, RoiKind.ELLIPSE, RoiKind.ELLIPSE]
    return objects
