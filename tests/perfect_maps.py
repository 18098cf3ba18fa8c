"""Maps as a perfect network would make them, and a network that reads them from the image's colours."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CLASSES = ["Neoplastic", "Inflammatory", "Connective"]


def grid_of_nuclei(side: int, count: int, seed: int = 0, radius: tuple[int, int] = (7, 12)) -> NDArray[np.int32]:
    """`count` x `count` discs, one in each cell of a grid, somewhere in the cell; they may touch, not overlap."""
    rng = np.random.default_rng(seed)
    inst = np.zeros((side, side), np.int32)
    pitch = side / count
    for number in range(count * count):
        r = int(rng.integers(*radius))
        y0, x0 = (number // count) * pitch, (number % count) * pitch
        y, x = (int(v + rng.integers(r, pitch - r)) for v in (y0, x0))
        yy, xx = np.mgrid[-r : r + 1, -r : r + 1]
        disc = yy**2 + xx**2 <= r * r
        part = inst[y - r : y + r + 1, x - r : x + r + 1]
        part[disc[: part.shape[0], : part.shape[1]] & (part == 0)] = number + 1
    return inst


def hv_maps(inst: NDArray[np.integer]) -> NDArray[np.float32]:
    """Distance maps, each nucleus alone: the slow, obvious way."""
    hv = np.zeros((*inst.shape, 2), np.float32)
    for label, where in enumerate(ndimage.find_objects(inst), start=1):
        if where is None:
            continue
        mask = inst[where] == label
        rows, columns = np.nonzero(mask)
        for axis, values in enumerate((columns, rows)):
            centred = (values - values.mean()).astype(np.float32)
            for sign in (-1, 1):
                half = sign * centred > 0
                if half.any():
                    centred[half] /= np.abs(centred[half]).max()
            hv[where][..., axis][mask] = centred
    return hv


def paint(
    inst: NDArray[np.integer], types: NDArray[np.integer], hv: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """An image that `ColourNetwork` reads: red is the class, green and blue the distances."""
    hv = hv_maps(inst) if hv is None else hv
    red = np.concatenate(([0], np.asarray(types)))[inst] * 50
    return np.dstack([red, np.rint(127 + 127 * hv[..., 0]), np.rint(127 + 127 * hv[..., 1])]).astype(np.uint8)


class ColourNetwork:
    """A predictor whose maps are in the colours of the image; white (outside of the slide) is background."""

    name = "stub"

    def __init__(
        self, input_size: int = 256, output_size: int = 164, mpp: float = 0.25, classes: Sequence[str] = CLASSES
    ):
        self.input_size, self.output_size, self.mpp, self.classes = input_size, output_size, mpp, classes
        self.windows = 0

    def predict(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.windows += len(batch)
        assert batch.shape[1:] == (self.input_size, self.input_size, 3)
        edge = (self.input_size - self.output_size) // 2
        crop = batch[:, edge : edge + self.output_size, edge : edge + self.output_size].astype(np.float32)
        types = np.rint(crop[..., 0] / 50).astype(int)
        types[types > len(self.classes)] = 0
        tp = np.eye(len(self.classes) + 1, dtype=np.float32)[types] * 0.8 + 0.2 / (len(self.classes) + 1)
        hv = (crop[..., 1:] - 127) / 127 * (types > 0)[..., None]
        return {"np": (types > 0).astype(np.float32), "hv": hv, "tp": tp}

    def tiatoolbox_network(self) -> object:
        """The same for TIAToolbox's engine, which wants probabilities of nucleus, distances, and class numbers."""
        from tiatoolbox.models.architecture.hovernet import HoVerNet

        predictor = self

        class Colours(HoVerNet):
            @staticmethod
            def infer_batch(_model: object, batch: object, *, device: str = "cpu") -> tuple[NDArray[np.float32], ...]:
                maps = predictor.predict(np.asarray(batch).astype(np.uint8))
                kinds = maps["tp"].argmax(axis=-1)[..., None].astype(np.float32)
                return maps["np"][..., None], maps["hv"], kinds

        return Colours(num_types=len(self.classes) + 1, mode="fast")
