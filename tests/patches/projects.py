"""Small QuPath projects of drawn slides, for tests of patches."""

import numpy as np
import shapely
import tifffile

from stqp.polygons import Polygons
from stqp.qupath.objects import PathObjects
from stqp.qupath.ownership import stamp
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide

CLASSES = ("Neoplastic", "Inflammatory", "Connective")


def draw_slide(path, width, height, seed=0, mpp=0.25):
    """A slide of smooth noise with stained circles, and the circles."""
    rng = np.random.default_rng(seed)
    image = rng.integers(190, 240, (height // 4 + 1, width // 4 + 1, 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    n = max(3, width * height // 2500)
    centres = np.column_stack([rng.uniform(0, width, n), rng.uniform(0, height, n)])
    radii = rng.uniform(6, 16, n)
    y, x = np.mgrid[:height, :width]
    for (cx, cy), r in zip(centres, radii, strict=True):
        a, b, c, d = int(max(cx - r, 0)), int(cx + r + 2), int(max(cy - r, 0)), int(cy + r + 2)
        disc = (x[c:d, a:b] + 0.5 - cx) ** 2 + (y[c:d, a:b] + 0.5 - cy) ** 2 < r**2
        image[c:d, a:b][disc] = (90, 60, 140)
    per_cm = 1e4 / mpp if mpp else 0
    extra = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"} if mpp else {}
    tifffile.imwrite(path, image.astype(np.uint8), photometric="rgb", tile=(128, 128), **extra)
    circles = shapely.buffer(shapely.points(centres), radii, quad_segs=6)
    return Polygons.from_shapely(circles), centres


def make_project(folder, sizes=((700, 500),), metadata=(), seed=0, mpp=0.25, classes=CLASSES, extra=None, slides=None):
    """A project of one slide of each size, its nuclei annotations of stqp's; `extra(i, polygons)` gives columns."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    home = folder.parent if slides is None else slides
    mpps = mpp if isinstance(mpp, (tuple, list)) else [mpp] * len(sizes)
    with QuPathProject.open(folder, "w") as project:
        for i, (width, height) in enumerate(sizes):
            path = home / f"slide{i}.tif"
            polygons, _ = draw_slide(path, width, height, seed + i, mpps[i])
            names = np.array(classes, object)[np.random.default_rng(seed + i).integers(0, len(classes), len(polygons))]
            columns = extra(i, polygons) if extra else {}
            objects = PathObjects.build(polygons, classes=columns.pop("classes", names), **columns)
            with open_slide(path) as slide:
                entry = project.add_image(slide, metadata=metadata[i] if metadata else None)
            entry.write_objects(stamp(objects, "import-test:s", "run"))
    return folder
