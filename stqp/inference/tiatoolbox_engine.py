"""The same network in TIAToolbox's engine, and what it finds as stqp's detections, for comparison."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError, StqpError, UsageError
from stqp.inference.detections import Detections
from stqp.inference.engine import slide_mpp
from stqp.inference.model import Predictor, downsample_of
from stqp.inference.tiatoolbox_files import resolution_note
from stqp.polygonise import polygonise
from stqp.polygons import Polygons
from stqp.slides import Slide
from stqp.tissue import find_tissue

logger = logging.getLogger(__name__)
_BLOCK = 2048
_HAIR = 0.05  # px; an outline through pixel centres holds these centres when it is a hair wider


def predict_with_tiatoolbox(
    slide: Slide,
    predictor: Predictor,
    *,
    batch_size: int = 4,
    tissue: bool = True,
    device: str | None = None,
) -> Detections:
    """Find and type the nuclei of a slide by TIAToolbox's `MultiTaskSegmentor`.

    Its outlines go through the centres of a nucleus's outermost pixels, which makes areas 7 to 8 % too small; they
    are drawn as the pixels that they stand for. It keeps of the probabilities only the share of a nucleus's pixels
    that are of its class; the rest is given to background.

    Parameters
    ----------
    slide
        The slide.
    predictor
        A network that `tiatoolbox_network` gives for TIAToolbox.
    batch_size
        Windows at a time.
    tissue
        Skip windows without tissue, by the same mask as stqp's engine.
    device
        That of the predictor when None.

    Raises
    ------
    UsageError
        When TIAToolbox cannot run the network.
    InputError
        When its engine fails on the slide.
    """
    make = getattr(predictor, "tiatoolbox_network", None)
    if make is None:
        raise UsageError(f"the model {predictor.name} is none that TIAToolbox's engine can run")
    mpp = slide_mpp(slide)
    if note := resolution_note(predictor.mpp):
        logger.warning("%s", note)
    from tiatoolbox.models.engine.io_config import IOInstanceSegmentorConfig
    from tiatoolbox.models.engine.multi_task_segmentor import MultiTaskSegmentor

    resolution = {"units": "mpp", "resolution": predictor.mpp}
    config = IOInstanceSegmentorConfig(
        input_resolutions=[resolution],
        output_resolutions=[resolution] * 3,
        save_resolution=resolution,
        patch_input_shape=[predictor.input_size] * 2,
        patch_output_shape=[predictor.output_size] * 2,
        stride_shape=[predictor.output_size] * 2,  # without overlaps: it averages the numbers of classes there
        margin=128,
        tile_shape=[1024, 1024],
    )
    # a mask of ones looks everywhere; without any, it makes its own
    mask = find_tissue(slide, mpp).mask if tissue else np.ones((32, 32), bool)
    engine = MultiTaskSegmentor(
        model=make(), batch_size=batch_size, num_workers=0, device=device or getattr(predictor, "device", "cpu"),
        verbose=False,
    )  # fmt: skip
    chatter = logging.getLogger("tiatoolbox")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            saved = engine.run(
                [slide.path], masks=[mask.astype(np.uint8)], patch_mode=False, ioconfig=config, output_type="zarr",
                save_dir=Path(folder) / "out", wsireader_kwargs={"mpp": (mpp, mpp)}, auto_get_mask=False,
            )  # fmt: skip
            arrays = _read(next(iter(saved.values())))
        except StqpError:
            raise
        except Exception as error:  # it raises many kinds
            raise InputError(f"TIAToolbox's engine failed on {slide.path} ({type(error).__name__}: {error})") from error
        finally:
            chatter.setLevel(level)
    pixel = downsample_of(predictor.mpp, mpp)
    contours, types, share = arrays
    polygons, kept = pixels_of(contours)
    prob = np.zeros((len(kept), len(predictor.classes) + 1))
    typed = np.where((types > 0) & (types < prob.shape[1]), types, 0)[kept]
    rows = np.arange(len(kept))
    prob[rows, typed] = share[kept]
    prob[:, 0] = np.where(typed > 0, 1 - share[kept], 1)
    centre = polygons.centroid()
    order = np.lexsort((centre[:, 0], centre[:, 1]))
    return Detections(
        polygons.take(order).scale(pixel), prob[order], [*predictor.classes], mpp, pixel,
        {"contours of TIAToolbox that hold no pixel": len(contours) - len(kept)},
    )  # fmt: skip


def _read(path: Any) -> tuple[Polygons, NDArray[np.int64], NDArray[np.float64]]:
    """Contours, class numbers and shares of what the engine saved."""
    import zarr

    group: Any = zarr.open(str(path), mode="r")
    if "contours" not in group:  # more than one task
        group = group[next(iter(group.group_keys()))]
    contours = np.asarray(group["contours"])
    n = len(contours)
    if not n:
        return Polygons.empty(), np.empty(0, np.int64), np.empty(0)
    if contours.dtype == object:
        lengths = np.array([len(c) for c in contours])
        coords = np.concatenate([np.asarray(c) for c in contours])
    else:  # padded to the longest
        real = ~(contours == np.iinfo(contours.dtype).min).all(axis=2)
        lengths, coords = real.sum(axis=1), contours[real]
    outlines = Polygons(
        coords.astype(np.float64), np.concatenate(([0], np.cumsum(lengths))), np.arange(n + 1, dtype=np.int64)
    )
    types = np.asarray(group["type"]).astype(np.int64).reshape(-1) if "type" in group else np.zeros(n, np.int64)
    share = np.asarray(group["prob"]).astype(np.float64).reshape(-1) if "prob" in group else np.zeros(n)
    return outlines, types, share


def pixels_of(contours: Polygons) -> tuple[Polygons, NDArray[np.int64]]:
    """Outline the pixels that contours through their centres stand for, holes filled.

    Parameters
    ----------
    contours
        Vertices are numbers of pixels: 3 means the centre of the pixel from 3 to 4.

    Returns
    -------
    polygons : Polygons
        Along the edges of the pixels.
    index : int64 (m,)
        Contour of each, ascending; one that others cover has none.
    """
    import shapely

    if not len(contours):
        return Polygons.empty(), np.empty(0, np.int64)
    moved = contours.shift(0.5, 0.5)
    counts = np.bincount(moved.vertex_owner, minlength=len(moved))
    several = counts > 0
    # a line around and back to its start: contours of one or two pixels have no area
    ends = np.cumsum(counts + several)
    number = np.repeat(np.arange(len(moved)), counts + several)
    place = np.arange(len(number)) - number + np.cumsum(~several)[number]  # a vertex more for each before
    last = ends[several] - 1
    place[last] = moved.ring_offsets[:-1][several]
    lines = shapely.linestrings(moved.coords[place], indices=(np.cumsum(several) - 1)[number])
    rims = shapely.buffer(lines, _HAIR, quad_segs=1)
    inner = np.full(int(several.sum()), shapely.Polygon(), object)
    long = counts[several] >= 3
    inner[long] = shapely.make_valid(moved.take(np.flatnonzero(several)[long]).to_shapely())
    wide = np.full(len(moved), shapely.Polygon(), object)
    wide[several] = shapely.union(rims, inner)
    drawn = Polygons.from_shapely(wide)
    bounds = drawn.bounds()
    home = np.floor((np.nan_to_num(bounds[:, :2]) + np.nan_to_num(bounds[:, 2:])) / 2 / _BLOCK).astype(np.int64)
    parts, index = [], []
    for key in np.unique(home[several], axis=0):
        mine = np.flatnonzero((home == key).all(axis=1) & several)
        mine = mine[np.argsort(-drawn.take(mine).area(), kind="stable")]  # small ones over large ones
        left, top = np.floor(bounds[mine, :2].min(axis=0)).astype(int)
        right, bottom = np.ceil(bounds[mine, 2:].max(axis=0)).astype(int)
        labels = drawn.take(mine).shift(-left, -top).rasterize((int(bottom - top), int(right - left)))
        polygons, ids = polygonise(labels)
        parts.append(polygons.shift(left, top))
        index.append(mine[ids - 1])
    found = np.concatenate([*index, np.empty(0, np.int64)])
    order = np.argsort(found)
    return Polygons.concatenate(parts).take(order), found[order]
