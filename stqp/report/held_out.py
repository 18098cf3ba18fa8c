"""A trained network on the patches that its run held out: scores, and the best, median and worst side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.patches.store import SIDES, TEST, VALIDATION, PatchFile
from stqp.slides import RGBImage
from stqp.taxonomy import RGB, UNKNOWN, UNKNOWN_COLOR

EACH = 3  # patches that are shown of the best, of the median and of the worst
_ZOOM = 2
_BORDER = (255, 255, 255)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HeldOut:
    """What a network does on held-out patches.

    Attributes
    ----------
    side : str
        ``validation`` or ``test``.
    rows : int (n,)
        The patches, of `available`.
    available : int
        Held-out patches in all.
    unit : str
        What the intervals resample: ``blocks`` or ``images`` of the slides, or ``patches``.
    result : dict
        As `stqp.evaluation.scores.summarise`; an image of it is a unit.
    panoptic, detection : float64 (n,)
        PQ and F_d of each patch; NaN without nuclei.
    shown : dict
        ``best``, ``median`` and ``worst``: for some patches the row, its words, and H&E, truth and prediction.
    """

    side: str
    rows: NDArray[np.integer]
    available: int
    unit: str
    result: Mapping[str, Any]
    panoptic: NDArray[np.float64]
    detection: NDArray[np.float64]
    shown: Mapping[str, list[tuple[int, str, RGBImage]]]


def judge_held_out(
    run: Path,
    patches: PatchFile,
    colors: Mapping[str, RGB],
    device: str,
    most: int | None = None,
    progress: Progress | None = None,
) -> HeldOut | None:
    """Run a run's network on patches of its test side, or, where it has none, of its validation side.

    Parameters
    ----------
    run
        Folder of the run.
    patches
        What it learnt from.
    colors
        Of the classes, by name.
    device
        As `stqp.devices.pick_device` gives it.
    most
        At most so many patches, evenly chosen; what the device does in some 20 seconds when None.
    progress
        Called with (patches done, patches in all).

    Returns
    -------
    HeldOut or None
        None when nothing was held out.
    """
    from stqp.evaluation.counts import Counts
    from stqp.evaluation.scores import summarise
    from stqp.training.checkpoints import load_network, read_checkpoint
    from stqp.training.network import architecture, cost
    from stqp.training.validation import chosen_rows, judge_patch

    side = TEST if (patches.side == TEST).any() else VALIDATION
    every = np.flatnonzero(patches.side == side)
    if not len(every):
        return None
    checkpoint = read_checkpoint(run)
    arch, network = architecture(checkpoint.architecture), load_network(checkpoint)
    if most is None:
        rows = chosen_rows(every, cost(network, arch.input_size)[1], device)
    else:
        rows = every[np.unique(np.linspace(0, len(every) - 1, min(len(every), most)).astype(int))]
    network = network.to(device)
    counts: list[Counts] = []
    for done, row in enumerate(rows, start=1):
        counts.append(judge_patch(network, arch, patches, int(row), device).counts)
        if progress is not None:
            progress(done, len(rows))
    unit, names = units(patches, rows, SIDES[side])
    pooled: dict[str, Counts] = {}
    for name, one in zip(names, counts, strict=True):
        pooled[name] = pooled[name] + one if name in pooled else one
    each = Counts.stack(counts).measures()
    panoptic, detection = each["pq"], each["f_d"]

    def draw(row: int) -> RGBImage:
        found = judge_patch(network, arch, patches, row, device)
        image = patches.read(row)["images"]
        middle = image[arch.margin : arch.margin + len(found.true), arch.margin : arch.margin + len(found.true)]
        palette = [colors.get(name, UNKNOWN_COLOR) for name in (UNKNOWN, *patches.classes)]
        return side_by_side(
            middle,
            outlined(middle, found.true, found.true_types, palette, found.valid),
            outlined(middle, found.predicted, found.predicted_types, palette, found.valid),
        )

    shown = {}
    for kind, positions in examples(panoptic).items():
        shown[kind] = [
            (int(rows[i]), _words(panoptic[i], detection[i], counts[i]), draw(int(rows[i]))) for i in positions
        ]
    result = summarise(pooled, patches.classes)
    return HeldOut(SIDES[side], rows, len(every), unit, result, panoptic, detection, shown)


def units(patches: PatchFile, rows: NDArray[np.integer], side: str) -> tuple[str, list[str]]:
    """What of each patch is resampled for intervals: patches of one block are no independent witnesses.

    Parameters
    ----------
    patches
        With the split in what it says of itself.
    rows : int (n,)
        Patches of the side.
    side
        Name of the side.

    Returns
    -------
    str, list of str
        ``blocks``, ``images`` or ``patches``, and the name of each patch's.
    """
    boxes: dict[tuple[Any, ...], list[Sequence[float]]] = {}
    for item in patches.about.get("split", {}).get(side, []):
        boxes.setdefault(_image(item), []).extend(item.get("boxes") or [])
    names = []
    for row in rows.tolist():
        source = int(patches.source[row])
        x, y = patches.origin[row] + 0.5
        here = boxes.get(_image(patches.sources[source]) if source < len(patches.sources) else (), [])
        inside = [i for i, (x0, y0, x1, y1) in enumerate(here) if x0 <= x < x1 and y0 <= y < y1]
        names.append(f"{source}:{inside[0] if inside else '-'}")
    if len({*names}) > 1:
        return ("blocks" if any(not n.endswith(":-") for n in names) else "images"), names
    return "patches", [str(row) for row in rows.tolist()]


def _image(item: Mapping[str, Any]) -> tuple[Any, ...]:
    return item.get("project"), item.get("entry"), item.get("entry_id")


def examples(scores: NDArray[np.float64], each: int = EACH) -> dict[str, list[int]]:
    """Positions of the best, of those around the median and of the worst; none twice, none without a score."""
    order = [i for i in np.argsort(-scores, kind="stable").tolist() if not np.isnan(scores[i])]
    each = min(each, max(1, len(order) // 3)) if order else 0
    best = order[:each]
    worst = [i for i in order[::-1][:each] if i not in best]
    rest = [i for i in order if i not in best and i not in worst]
    start = max(0, (len(rest) - each) // 2)
    return {"best": best, "median": rest[start : start + each], "worst": worst}


def outlined(
    image: RGBImage,
    nuclei: NDArray[np.integer],
    types: NDArray[np.integer],
    palette: Sequence[RGB],
    valid: NDArray[np.bool_] | None = None,
) -> RGBImage:
    """Enlarge an image and draw the outlines of nuclei within it.

    Parameters
    ----------
    image : uint8 (h, w, 3)
    nuclei : int (h, w)
        By number, 0 is background.
    types : int (n,)
        Position in the palette of each nucleus, in the order of the numbers.
    palette
        Colours.
    valid : bool (h, w)
        What lies elsewhere is made pale.

    Returns
    -------
    uint8 (2 h, 2 w, 3)
    """
    import cv2

    size = image.shape[1] * _ZOOM, image.shape[0] * _ZOOM
    large = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
    if valid is not None:
        masked = np.kron(~valid, np.ones((_ZOOM, _ZOOM), bool))
        large[masked] = (large[masked] * 0.3 + 255 * 0.7).astype(np.uint8)
    labels = np.kron(nuclei, np.ones((_ZOOM, _ZOOM), nuclei.dtype))
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= differs
        edge[tuple(second)] |= differs
    edge = (cv2.dilate(edge.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & (labels > 0)
    ids = np.unique(nuclei[nuclei > 0])
    table = np.zeros((int(nuclei.max(initial=0)) + 1, 3), np.uint8)
    if len(ids):
        table[ids] = np.array(palette, np.uint8)[types]
    large[edge] = table[labels[edge]]
    return np.asarray(large, np.uint8)


def side_by_side(plain: RGBImage, truth: RGBImage, found: RGBImage, gap: int = 8) -> RGBImage:
    """H&E, truth and prediction in one picture."""
    import cv2

    large = cv2.resize(plain, truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    between = np.full((truth.shape[0], gap, 3), _BORDER, np.uint8)
    return np.asarray(np.concatenate([large, between, truth, between, found], axis=1), np.uint8)


def _words(panoptic: float, detection: float, counts: Any) -> str:
    scores = [f"{name} {value:.2f}" for name, value in (("PQ", panoptic), ("F_d", detection)) if value == value]
    true, found = int(counts.n_true.sum()), int(counts.n_pred.sum())
    return f"{', '.join(scores)}; {true:,} true and {found:,} predicted nuclei"
