import cv2
import numpy as np
import pytest
from separability.planted import MPP, planted
from skimage.feature import graycomatrix, graycoprops
from skimage.measure import regionprops

from stqp.alignment.stain import Stains
from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.separability import features, neighbours, pixels
from stqp.separability.shape import SHAPE, shape_features
from stqp.slides import open_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("slide"), 3, (1100, 901))


def column(values, name):
    return values[:, features.NAMES.index(name)]


def test_shape_is_that_of_regionprops():
    rng = np.random.default_rng(0)
    rings = []
    for _ in range(30):  # turned, bent and notched
        theta = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        r = 1 + 0.25 * np.cos(3 * theta + rng.uniform(0, 6)) + 0.1 * np.cos(5 * theta + rng.uniform(0, 6))
        x, y = 150 * r * np.cos(theta), 150 * r * np.sin(theta) / rng.uniform(1, 4)
        turn = rng.uniform(0, np.pi)
        rings.append(np.c_[x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)] + 250)
    outlines = Polygons.from_rings(np.concatenate(rings), np.arange(31) * 40)
    found, angle = shape_features(outlines, 0.1)
    for i in range(30):
        (seen,) = regionprops(outlines.take([i]).rasterize((500, 500)))
        expected = [seen.area * 0.01, seen.axis_major_length * 0.1, seen.axis_minor_length * 0.1, seen.solidity]
        assert np.allclose(found[i, [0, 3, 4, 6]], expected, rtol=0.02)
        assert abs(found[i, SHAPE.index("eccentricity")] - seen.eccentricity) < 0.02
        # regionprops measures the angle from the rows
        assert abs(np.sin(angle[i] - (np.pi / 2 - seen.orientation))) < 0.05


def test_shape_holds_for_holes_parts_turns_and_places():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], float)
    hole = np.array([[4, 4], [4, 6], [6, 6], [6, 4]], float)
    ring = Polygons(np.concatenate([square, hole]), np.array([0, 4, 8]), np.array([0, 2]))
    parts = Polygons(np.concatenate([square, square + 30]), np.array([0, 4, 8]), np.array([0, 2]))
    both = Polygons.concatenate([ring, parts, Polygons.empty(1)])
    found, _ = shape_features(both, 0.5)
    assert np.allclose(found[:2, 0], [96 / 4, 200 / 4]) and np.isnan(found[2]).all()
    assert found[0, 3] == pytest.approx(found[0, 4]) and found[1, 3] > 4 * found[1, 4]
    assert found[1, SHAPE.index("solidity")] < 0.5
    turn = np.array([[0.6, -0.8, 90_000], [0.8, 0.6, 120_000], [0, 0, 1]])
    assert np.allclose(shape_features(both.transform(turn), 0.5)[0][:2], found[:2], rtol=1e-6)


def test_stain_and_texture_are_those_of_each_nucleus_alone(slide):
    """Against one nucleus at a time, in plain numpy."""
    with open_slide(slide.image, MPP) as opened:
        image = opened.read(0, 0, (opened.width, opened.height))
    stain = pixels.SlideStain(Stains.usual(), 1.1, 0.7)
    labels = slide.polygons.rasterize(image.shape[:2])
    found = pixels.measure_window(image, slide.polygons, np.ones(labels.shape, bool), stain, MPP)
    named = dict(zip(pixels.PIXELS, found.T, strict=True))
    blue = stain.stains.amount(image) / 1.1
    pink = stain.stains.eosin_amount(image) / 0.7
    codes = pixels.grey_levels(blue)
    rng = np.random.default_rng(0)
    for i in rng.choice(len(found), 12, replace=False).tolist():
        mask = labels == i + 1
        values = blue[mask]
        assert named["haematoxylin mean"][i] == pytest.approx(values.mean(), rel=1e-4)
        assert named["haematoxylin sd"][i] == pytest.approx(values.std(), rel=1e-3)
        for share in (10, 50, 90):
            assert named[f"haematoxylin {share} %"][i] == pytest.approx(
                np.percentile(np.minimum(values, 1.49), share), abs=pixels.TOP / pixels.LEVELS
            )
        away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) * MPP
        others = cv2.distanceTransform(((labels == 0) | mask).astype(np.uint8), cv2.DIST_L2, 5) * MPP
        ring = (away > 1) & (away <= 3) & (labels == 0) & (others > away)
        if ring.sum() > 40:  # pixels as far from another nucleus are either's
            assert named["eosin of ring"][i] == pytest.approx(pink[ring].mean(), abs=0.03)
            assert named["haematoxylin against ring"][i] == pytest.approx(values.mean() - blue[ring].mean(), abs=0.03)
        for um, step in ((0.5, 2), (1.0, 4)):
            slant = round(step / np.sqrt(2))
            matrix = np.zeros((64, 64, 1, 1))
            for down, right in ((0, step), (slant, slant), (step, 0), (slant, -slant)):
                for r, c in np.argwhere(mask).tolist():
                    if 0 <= c + right < mask.shape[1] and r + down < mask.shape[0] and mask[r + down, c + right]:
                        a, b = codes[r, c], codes[r + down, c + right]
                        matrix[a, b] += 1
                        matrix[b, a] += 1
            matrix /= matrix.sum()
            for name in ("contrast", "homogeneity", "correlation"):
                expected = graycoprops(matrix, name)[0, 0]
                assert named[f"co-occurrence {name} at {um:g} µm"][i] == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(found).mean() > 0.97


def test_co_occurrence_is_scikit_images_for_a_whole_image():
    codes = np.random.default_rng(1).integers(0, 64, (40, 50)).astype(np.uint8)
    found = pixels.co_occurrence(codes, np.ones(codes.shape, np.int32), 1, 1)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    counts = graycomatrix(codes, [1], angles, 64, symmetric=True).sum(axis=3, keepdims=True).astype(float)
    for name, value in zip(("contrast", "homogeneity", "correlation"), found, strict=True):
        assert value[0] == pytest.approx(graycoprops(counts / counts.sum(), name)[0, 0])


def test_tiles_change_nothing(slide):
    with open_slide(slide.image, MPP) as opened:
        stain = pixels.SlideStain.of(opened, slide.polygons.centroid(), 1.0)
        whole = pixels.pixel_features(opened, slide.polygons, MPP, MPP, stain, core=2000)
        tiles = pixels.pixel_features(opened, slide.polygons, MPP, MPP, stain, core=301)
    assert np.array_equal(np.isnan(whole), np.isnan(tiles))
    # the distance of a pixel between two nuclei may round to either
    assert np.isclose(whole, tiles, rtol=1e-3, atol=1e-3, equal_nan=True).mean() > 0.999


def test_a_turned_slide_gives_the_same(slide, tmp_path):
    with open_slide(slide.image, MPP) as opened:
        image = opened.read(0, 0, (opened.width, opened.height))
        straight = features.measure(opened, slide.polygons, MPP)
    cv2.imwrite(str(tmp_path / "turned.png"), np.rot90(image)[..., ::-1])
    x, y = slide.polygons.coords.T
    turned = Polygons(np.c_[y, image.shape[1] - x], slide.polygons.ring_offsets, slide.polygons.geom_offsets)
    with open_slide(tmp_path / "turned.png", MPP) as opened:
        found = features.measure(opened, turned, MPP)
    for i, name in enumerate(straight.names):
        a, b = straight.values[:, i], found.values[:, i]
        both = np.isfinite(a) & np.isfinite(b)
        assert both.mean() > 0.85 and np.corrcoef(a[both], b[both])[0, 1] > 0.9, name  # stains are of other windows


def test_micrometres_carry_over_between_scanners(slide, tmp_path):
    """The same tissue at a coarser pixel: sizes, densities and stain stay what they are."""
    with open_slide(slide.image, MPP) as opened:
        image = opened.read(0, 0, (opened.width, opened.height))
        small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        fine = features.measure(opened, slide.polygons, MPP, work_mpp=0.5)
    cv2.imwrite(str(tmp_path / "small.png"), small[..., ::-1])
    with open_slide(tmp_path / "small.png", 0.5) as opened:
        coarse = features.measure(opened, slide.polygons.scale(0.5), 0.5)
    for name in ("area (µm²)", "haematoxylin mean", "eosin of ring", "nuclei within 20 µm (1/1000 µm²)"):
        a, b = column(fine.values, name), column(coarse.values, name)
        both = np.isfinite(a) & np.isfinite(b)
        assert np.median(np.abs(a[both] - b[both])) < 0.03 * np.median(np.abs(a[both])), name


def test_neighbours_are_those_of_the_slow_way():
    rng = np.random.default_rng(2)
    places = rng.uniform(0, 300, (400, 2))
    places[7] = np.nan
    area, long, angle = rng.uniform(5, 60, 400), rng.uniform(0, 1, 400), rng.uniform(0, np.pi, 400)
    seen = neighbours.seen_share(places, (20.0, 50.0), (300.0, 300.0), None)
    found = neighbours.neighbour_features(places, area, long, angle, seen)
    assert np.isnan(found[7]).all()
    for i in (0, 5, 33, 120):
        away = np.hypot(*(places - places[i]).T)
        away[i] = np.inf
        assert found[i, 0] == pytest.approx(np.nanmin(away))
        for k, radius in enumerate((20, 50)):
            near = np.flatnonzero(away <= radius)
            density = 1000 * len(near) / (np.pi * radius**2 * seen[i, k])
            assert found[i, 1 + k] == pytest.approx(density)
            if len(near):
                assert found[i, 3 + k] == pytest.approx(area[near].mean())
                wave = (long[near] * np.exp(2j * angle[near])).sum() / long[near].sum()
                assert found[i, 6 + k] == pytest.approx(abs(wave))


def test_density_is_of_what_was_looked_at():
    x, y = np.meshgrid(np.arange(2, 400, 4.0), np.arange(2, 400, 4.0))
    places = np.c_[x.ravel(), y.ravel()]
    ones = np.ones(len(places))
    half = Polygons.from_rings(np.array([[0, 0], [200, 0], [200, 400], [0, 400]], float), np.array([0, 4]))
    for coverage, kept in ((None, places[:, 0] < 400), (half, places[:, 0] < 200)):
        some = places[kept]
        seen = neighbours.seen_share(some, (20.0, 50.0), (400.0, 400.0), coverage)
        found = neighbours.neighbour_features(some, ones[kept], ones[kept], ones[kept], seen)[:, 2]
        known = np.isfinite(found)
        assert np.abs(found[known] / 62.5 - 1).max() < 0.1  # one in 16 µm², also at the edges
        assert known.mean() > 0.9 and not known[np.hypot(*some.T) < 20].any()  # a corner sees a quarter


def test_nuclei_at_the_edge_and_without_outline_are_not_known_and_counted(slide):
    outside = slide.polygons.take([0])
    moved = outside.shift(*(-outside.centroid()[0]))  # three quarters beyond the corner
    half = outside.shift(-outside.centroid()[0, 0] + 1, 300 - outside.centroid()[0, 1])
    nuclei = Polygons.concatenate([slide.polygons, moved, half, Polygons.empty(1)])
    with open_slide(slide.image, MPP) as opened:
        found = features.measure(opened, nuclei, MPP)
    area, blue = column(found.values, "area (µm²)"), column(found.values, "haematoxylin mean")
    assert np.isnan(area[-3:]).all() and np.isfinite(area[:-3]).all()
    assert np.isnan(blue[[-3, -1]]).all() and np.isfinite(blue[-2])
    assert found.counts["nuclei that the slide's edge cuts (their size and shape are not known)"] == 2
    assert found.counts["features that are not known (imputed)"] >= 3 * len(SHAPE)


def test_a_broken_slide_and_a_wrong_scale_are_said(slide, tmp_path, monkeypatch):
    with open_slide(slide.image, MPP) as opened:
        with pytest.raises(UsageError, match="above 0"):
            features.measure(opened, slide.polygons, 0.0)

        def fail(*_: object) -> None:
            raise RuntimeError("tile 7")

        monkeypatch.setattr(opened, "read", fail)
        with pytest.raises(InputError, match="cannot be read to its end"):
            features.measure(opened, slide.polygons, MPP)
