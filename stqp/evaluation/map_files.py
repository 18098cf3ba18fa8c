"""Instance maps of the field's data sets: npz and npy, mat (CoNSeP, Kumar), png and tif, PanNuke's arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp.errors import InputError
from stqp.evaluation.nuclei import Side
from stqp.inference.maps import name_of, read_class_names, read_map
from stqp.taxonomy import VISUAL_CLASSES

_ARRAYS, _PICTURES = (".npz", ".npy", ".mat"), (".png", ".tif", ".tiff")
_LABELS, _IMAGES = ("labels", "masks", "inst", "gt"), ("images", "imgs", "tissue images")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".svs", ".ndpi", ".bmp")
PANNUKE = "masks.npy"


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    return next((p for p in sorted(folder.iterdir()) if p.is_dir() and p.name.lower() in names), None)


class MapFolder:
    """A folder with one instance map an image; CoNSeP's and Kumar's ``Labels`` beside ``Images`` as well.

    Parameters
    ----------
    folder
        The folder, or one that holds a folder ``Labels``.
    images
        Folder of the H&E; by default ``Images`` beside ``Labels``, or the folder itself.
    """

    def __init__(self, folder: Path, images: Path | None = None):
        if not folder.is_dir():
            raise InputError(
                f"expected a folder of instance maps, found {'a file' if folder.exists() else 'nothing'} at {folder}"
            )
        self.name = str(folder)
        inner = folder if _maps(folder) else _child(folder, _LABELS) or folder
        self.files = _maps(inner)
        if not self.files:
            raise InputError(f"expected instance maps (npz, npy, mat, png or tif) in {folder}, found none")
        # pictures beside arrays are the H&E; pictures alone are the maps
        beside = inner if next(iter(self.files.values())).suffix.lower() in _ARRAYS else None
        self._pictures = pictures(images or _child(folder, _IMAGES) or _child(inner.parent, _IMAGES) or beside)
        self.class_names = read_class_names(inner) or read_class_names(folder)
        self.default_names: Mapping[int, str] | None = None

    def images(self) -> list[str]:
        """Stems of the maps."""
        return [*self.files]

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, image: str) -> Side:
        """Read the map of an image."""
        path = self.files[image]
        suffix = path.suffix.lower()
        if suffix in (".npz", ".npy"):
            found = read_map(path, self.class_names)
            inst, ids, types, names = found.inst, found.ids, found.types, found.classes
        else:
            inst, ids, types = _read_mat(path) if suffix == ".mat" else (_read_picture(path), None, None)
            names = dict(self.class_names) if self.class_names else None
        _check_binary(path, inst)
        present = np.unique(inst)
        present = present[present > 0].astype(np.int64)
        names = names or (dict(self.default_names) if self.default_names else None)
        classes = _classes(path, types, ids, present, names)
        extra = _extra(path, ids, present)
        return Side(
            source=str(path),
            classes=classes,
            inst=inst,
            size=(inst.shape[1], inst.shape[0]),
            image=self._pictures.get(image),
            **extra,
        ).check()


def _maps(folder: Path) -> dict[str, Path]:
    """Files of maps by stem; pictures count where there are no arrays."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    for suffixes in (_ARRAYS, _PICTURES):
        found: dict[str, Path] = {}
        for path in files:
            if path.suffix.lower() in suffixes:
                if path.stem in found:
                    raise InputError(f"{folder} has both {found[path.stem].name} and {path.name}; remove one")
                found[path.stem] = path
        if found:
            return found
    return {}


def pictures(folder: Path | None) -> dict[str, Path]:
    """Pictures in a folder by stem."""
    if folder is None or not folder.is_dir():
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in _IMAGE_SUFFIXES}


def _classes(
    path: Path,
    types: NDArray[np.int64] | None,
    ids: NDArray[np.int64] | None,
    present: NDArray[np.int64],
    names: Mapping[int, str] | None,
) -> NDArray[np.object_]:
    from stqp.evaluation.overlap import types_of

    numbers = types_of(types, ids, present, f"{path}:")
    if names is not None:
        outside = sorted({int(t) for t in numbers.tolist() if t > 0} - set(names))
        if outside:
            known = ", ".join(f"{k} {v}" for k, v in sorted(names.items()))
            raise InputError(
                f"expected types of the classes {known} in {path}, found {', '.join(map(str, outside[:5]))}; "
                "name them in classes.json"
            )
    return np.array([*(name_of(t, names) for t in numbers.tolist()), None], object)[:-1]


def _extra(path: Path, ids: NDArray[np.int64] | None, present: NDArray[np.int64]) -> dict[str, Any]:
    """What an npz may say beside its map: the probability of each nucleus' class, µm per px."""
    if path.suffix.lower() != ".npz":
        return {}
    result: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as content:
        if "mpp" in content:
            result["mpp"] = float(content["mpp"])
        if "probability" in content:
            values = np.asarray(content["probability"], np.float64).reshape(-1)
            given = present if ids is None else ids
            if len(values) != len(given):
                raise InputError(f"expected {len(given)} probabilities in {path}, one a nucleus, found {len(values)}")
            if number := int(np.isnan(values).sum()):
                raise InputError(
                    f"expected a probability for each nucleus in {path}, found NaN for {number} of {len(values)}"
                )
            order = np.argsort(given)
            result["probability"] = values[order][np.searchsorted(given[order], present)]
    return result


def _read_mat(path: Path) -> tuple[NDArray[np.integer], None, NDArray[np.int64] | None]:
    """A MATLAB file as of HoVer-Net's data: ``inst_map``, and ``inst_type`` or ``type_map``."""
    from scipy.io import loadmat

    try:
        content = loadmat(str(path))
    except NotImplementedError as error:
        raise InputError(f"{path} is a MATLAB 7.3 file; save it with -v7, or as npz") from error
    except Exception as error:  # scipy raises many kinds for a broken or foreign file
        raise InputError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if "inst_map" not in content:
        keys = ", ".join(sorted(k for k in content if not k.startswith("__")))
        raise InputError(f"expected an array 'inst_map' in {path}, found {keys or 'nothing'}")
    inst = whole_numbers(path, np.asarray(content["inst_map"]))
    if "inst_type" in content:
        return inst, None, np.asarray(content["inst_type"]).reshape(-1).astype(np.int64)
    if "type_map" in content:
        types = whole_numbers(path, np.asarray(content["type_map"]))
        if types.shape != inst.shape:
            raise InputError(f"expected type_map and inst_map of one size in {path}, found {types.shape}, {inst.shape}")
        return inst, None, _most_common(inst, types)
    return inst, None, None


def _most_common(inst: NDArray[np.integer], types: NDArray[np.integer]) -> NDArray[np.int64]:
    """The type that most pixels of each nucleus have, in ascending order of ids."""
    inside = inst > 0
    ids, place = np.unique(inst[inside], return_inverse=True)
    k = int(types.max(initial=0)) + 1
    table = np.bincount(place.reshape(-1) * k + types[inside], minlength=len(ids) * k).reshape(len(ids), k)
    return table.argmax(axis=1).astype(np.int64)


def _read_picture(path: Path) -> NDArray[np.integer]:
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            array = np.asarray(tifffile.imread(path))
        else:
            from PIL import Image

            with Image.open(path) as image:
                array = np.asarray(image)
    except Exception as error:  # the readers raise dozens of kinds
        raise InputError(f"{path} cannot be read as an instance map: {error}") from error
    return whole_numbers(path, array)


def whole_numbers(path: Path | str, array: NDArray[Any]) -> NDArray[np.integer]:
    """A map of ids from an array; a clear sentence for colours, fractions and stacks."""
    array = np.squeeze(array)
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        raise InputError(
            f"expected instance ids in one channel in {path}, found a picture of {array.shape[-1]} colours; "
            "colours are no ids: save the map as npy, npz or 16-bit png"
        )
    if array.ndim != 2:
        raise InputError(f"expected an instance map of height x width in {path}, found shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        if array.dtype != bool and not np.array_equal(array, np.rint(array)):
            raise InputError(f"expected whole numbers as instance ids in {path}, found {array.dtype} with fractions")
        array = array.astype(np.int64)
    return array


def _check_binary(path: Path, inst: NDArray[np.integer]) -> None:
    """Refuse a mask of foreground: its nuclei would be one."""
    if int(inst.max(initial=0)) not in (1, 255) or not np.isin(inst, (0, inst.max())).all():
        return
    from scipy.ndimage import label

    if (number := int(label(inst > 0)[1])) > 1:
        raise InputError(
            f"expected an id for each nucleus in {path}, found a mask of foreground ({number} parts, one value); "
            "number its nuclei first"
        )


class PanNuke:
    """PanNuke's arrays: ``masks.npy`` (N, height, width, classes + background), ``types.npy``, ``images.npy``.

    Parameters
    ----------
    masks
        The file of the masks; the others lie beside it, or in folders ``images`` and ``masks`` beside each other.
    """

    def __init__(self, masks: Path):
        self.name = str(masks)
        self._masks = _load(masks)
        if self._masks.ndim != 4 or self._masks.shape[-1] < 2:
            raise InputError(
                f"expected PanNuke's masks, images x height x width x classes, in {masks}, found shape "
                f"{self._masks.shape}"
            )
        n = self._masks.shape[-1] - 1
        known = [c.name for c in VISUAL_CLASSES]
        self.classes = known if n == len(known) else [str(i) for i in range(1, n + 1)]
        tissue, pixels = _sibling(masks, "types.npy"), _sibling(masks, "images.npy")
        self._tissue = None if tissue is None else _load(tissue)
        self._pixels = None if pixels is None else _load(pixels)
        for array, path in ((self._tissue, tissue), (self._pixels, pixels)):
            if array is not None and len(array) != len(self._masks):
                raise InputError(f"{masks} has {len(self._masks)} images and {path} has {len(array)}")
        self.default_names: Mapping[int, str] | None = None

    def images(self) -> list[str]:
        """Numbers of the images, from 00000."""
        return [f"{i:05d}" for i in range(len(self._masks))]

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, image: str) -> Side:
        """Read the nuclei of an image."""
        index = int(image)
        masks = self._masks[index]
        inst = np.zeros(masks.shape[:2], np.int64)
        classes: list[str] = []
        for channel, name in enumerate(self.classes):
            layer = whole_numbers(f"{self.name}, image {image}", masks[..., channel])
            # a pixel that two classes claim stays with the first
            ids, place = np.unique(np.where(inst > 0, 0, layer), return_inverse=True)
            shift = np.where(ids > 0, np.cumsum(ids > 0) + len(classes), 0)
            inst += shift[place.reshape(layer.shape)]
            classes += [name] * int((ids > 0).sum())
        about = {} if self._tissue is None else {"organ": str(self._tissue[index])}
        pixels = None if self._pixels is None else np.asarray(self._pixels[index]).astype(np.uint8)
        return Side(
            source=f"{self.name}, image {image}",
            classes=np.array([*classes, None], object)[:-1],
            inst=inst,
            size=(inst.shape[1], inst.shape[0]),
            about=about,
            pixels=pixels,
        )


def _load(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for a broken or foreign file
        raise InputError(f"{path} cannot be read as an array: {error}") from error


def _sibling(masks: Path, name: str) -> Path | None:
    """``images.npy`` beside the masks, or in PanNuke's ``images/fold1`` for ``masks/fold1``."""
    places = [masks.parent, masks.parent.parent, masks.parent.parent.parent / "images" / masks.parent.name]
    return next((p / name for p in places if (p / name).is_file()), None)


def pannuke_files(path: Path) -> list[Path]:
    """The masks of a PanNuke folder, one file a fold, or file; none where it is none."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".npy" else []
    published = "*/*/*/"  # Fold 1/masks/fold1
    found = [p for depth in ("", "*/", "*/*/", published) for p in sorted(path.glob(f"{depth}{PANNUKE}"))]
    return [p for p in found if p.is_file()]
