"""Patches written in the layouts of other programs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.patches.layouts.pannuke import CLASSES, CLASSES_FILE
from stqp.patches.store import SIDES, UNKNOWN_TYPE, PatchFile
from stqp.record import RunRecord

Progress = Callable[[int, int], None]
INDEX = "patches.csv"


@dataclass
class Patch:
    """One patch to write.

    Attributes
    ----------
    name : str
    side : int
    image, instances, types, valid : array (P, P, ...)
        As in the file; a nucleus of unknown class has the type 0.
    """

    name: str
    side: int
    image: NDArray[np.uint8]
    instances: NDArray[np.int32]
    types: NDArray[np.uint8]
    valid: NDArray[np.uint8]


def export_patches(file: Path, layout: str, out: Path, record: RunRecord, progress: Progress | None = None) -> None:
    """Write patches in the layout of another program.

    None of the layouts knows nuclei of unknown class, or pixels of which nothing is known: what is lost so is
    counted, and where there are such pixels a folder ``valid`` beside the rest has a mask for each patch.

    Parameters
    ----------
    file
        File of patches.
    layout
        One of `LAYOUTS`.
    out
        Folder, which is made here.
    record
        Takes counts and warnings.
    progress
        Called with (patches done, patches in all).

    Raises
    ------
    InputError
        When the file is none, or the folder holds something.
    EnvironmentProblem
        When the disk is full; nothing of the folder is left then.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"there is no layout {layout!r} to write; choose one of {', '.join(LAYOUTS)}")
    patches = PatchFile(file)
    if not len(patches):
        raise InputError(f"there are no patches in {file}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something already; choose a new folder")
    record.add_input(file)
    began = not out.exists()
    with files.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            names = LAYOUTS[layout](patches, _Reader(patches, out, record, progress), out)
            files.write_json(out / CLASSES_FILE, names)
        except BaseException:
            for path in out.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if began:
                out.rmdir()
            raise
    for number, side in enumerate(SIDES):
        record.count(f"patches, {side}", int((patches.side == number).sum()))


class _Reader:
    """Goes through the patches once, and notes what the layout cannot say."""

    def __init__(self, patches: PatchFile, out: Path, record: RunRecord, progress: Progress | None):
        self._patches, self._out, self.record, self._progress = patches, out, record, progress

    def __iter__(self) -> Iterator[Patch]:
        patches, unknown, masked = self._patches, 0, 0
        rows = [["name", "side", "image", "x", "y"]]
        for row in range(len(patches)):
            found = patches.read(row)
            source = patches.sources[patches.source[row]]["entry"]
            name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', source).strip('-.')[:60] or 'image'}_{row:06d}"
            types = np.where(found["types"] == UNKNOWN_TYPE, 0, found["types"]).astype(np.uint8)
            unknown += int(patches.counts[row, 0])
            if not found["valid"].all():
                masked += 1
                (self._out / "valid").mkdir(exist_ok=True)
                write_png(self._out / "valid" / f"{name}.png", (found["valid"] > 0).astype(np.uint8) * 255)
            x, y = patches.origin[row].tolist()
            rows.append([name, SIDES[patches.side[row]], source, f"{x:g}", f"{y:g}"])
            yield Patch(
                name, int(patches.side[row]), found["images"], found["instances"], types, found["valid"]
            )  # fmt: skip
            if self._progress:
                self._progress(row + 1, len(patches))
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        files.write_bytes(self._out / INDEX, text.getvalue().encode())
        if unknown:
            self.record.skip("types of nuclei of unknown class, which the layout cannot say (type 0)", unknown)
        if masked:
            self.record.warn(
                f"{masked} patches have pixels of which nothing is known, which the layout cannot say: they look like "
                "background there; the folder valid has their masks"
            )


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an image."""
    from PIL import Image

    Image.fromarray(pixels).save(path, compress_level=1)


def _fold(side: int) -> str:
    return f"fold{side + 1}"


def _write_pannuke(patches: PatchFile, reader: _Reader, out: Path) -> list[str]:
    """Folds of arrays: training is fold 1, validation fold 2, testing fold 3, as in PanNuke's first official split."""
    own = [c for c in patches.classes if c not in CLASSES]
    names = patches.classes if own else CLASSES
    channel = np.array([0, *[names.index(c) + 1 for c in patches.classes]])
    size = patches.size
    writers: dict[int, tuple[Any, Any]] = {}
    tissues: dict[int, list[str]] = {}
    done = dict.fromkeys(range(len(SIDES)), 0)
    for side in np.unique(patches.side).tolist():
        n, fold = int((patches.side == side).sum()), _fold(side)
        arrays = []
        for kind, depth, dtype in (("images", 3, np.uint8), ("masks", len(names) + 1, np.int32)):
            path = out / f"Fold {side + 1}" / kind / fold / f"{kind}.npy"
            path.parent.mkdir(parents=True)
            shape = (n, size, size, depth)
            arrays.append(_Rows(path, shape, np.dtype(dtype)))
        writers[side] = arrays[0], arrays[1]
        mine = patches.source[patches.side == side]
        tissues[side] = [_tissue(patches.sources[i].get("metadata", {})) for i in mine.tolist()]
    for patch in reader:
        images, masks = writers[patch.side]
        kinds = channel[patch.types]
        mask = np.zeros((size, size, len(names) + 1), np.int32)
        typed = np.nonzero(kinds)
        mask[(*typed, kinds[typed] - 1)] = patch.instances[typed]
        mask[..., -1] = patch.instances == 0
        images.write(patch.image)
        masks.write(mask)
        done[patch.side] += 1
    for side, (images, masks) in writers.items():
        images.close()
        masks.close()
        np.save(out / f"Fold {side + 1}" / "images" / _fold(side) / "types.npy", np.array(tissues[side]))
    if own:
        reader.record.warn(
            f"PanNuke has no class {', '.join(own)}; the masks have a channel for each class of the file in their place"
        )
    return names


def _tissue(metadata: dict[str, str]) -> str:
    return next((metadata[k] for k in ("tissue", "organ") if metadata.get(k)), "Unknown")


class _Rows:
    """Writes an array row by row, so that a set larger than the memory passes."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self._file = path.open("wb")
        self._dtype = dtype
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, row: NDArray[Any]) -> None:
        """Write the next row."""
        self._file.write(np.ascontiguousarray(row, self._dtype).tobytes())

    def close(self) -> None:
        """Close."""
        self._file.close()


def _write_hovernet(patches: PatchFile, reader: _Reader, out: Path) -> list[str]:
    """Arrays (P, P, 5) of red, green, blue, nucleus and type, as the official training reads them."""
    for patch in reader:
        folder = out / SIDES[patch.side]
        folder.mkdir(exist_ok=True)
        stacked = np.concatenate(
            [patch.image.astype(np.int32), patch.instances[..., None], patch.types[..., None].astype(np.int32)], axis=2
        )
        np.save(folder / f"{patch.name}.npy", stacked)
    return patches.classes


def _write_consep(patches: PatchFile, reader: _Reader, out: Path) -> list[str]:
    """``Images/*.png`` and ``Labels/*.mat`` with inst_map, type_map, inst_type and inst_centroid."""
    from scipy import ndimage
    from scipy.io import savemat

    for patch in reader:
        folder = out / SIDES[patch.side].capitalize()
        for name in ("Images", "Labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_png(folder / "Images" / f"{patch.name}.png", patch.image)
        ids, first = np.unique(patch.instances, return_index=True)
        kinds = patch.types.reshape(-1)[first][ids > 0]
        n = len(kinds)
        centres = ndimage.center_of_mass(patch.instances > 0, patch.instances, np.arange(1, n + 1))
        content = {
            "inst_map": patch.instances.astype(np.float64),
            "type_map": patch.types.astype(np.float64),
            "inst_type": kinds.astype(np.float64)[:, None],
            "inst_centroid": np.array(centres).reshape(n, 2)[:, ::-1],
        }
        savemat(folder / "Labels" / f"{patch.name}.mat", content, do_compression=True)
    return patches.classes


def _write_coco(patches: PatchFile, reader: _Reader, out: Path) -> list[str]:
    """``SIDE/NAME.png`` and ``annotations/instances_SIDE.json``; outlines run along the pixels' edges."""
    from stqp.patches.layouts.coco import categories, nuclei_annotations

    tables: dict[int, dict[str, list[Any]]] = {}
    for number, patch in enumerate(reader, start=1):
        folder = out / SIDES[patch.side]
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{patch.name}.png", patch.image)
        table = tables.setdefault(patch.side, {"images": [], "annotations": []})
        height, width = patch.instances.shape
        table["images"].append({"id": number, "file_name": f"{patch.name}.png", "width": width, "height": height})
        start = len(table["annotations"]) + 1
        table["annotations"] += nuclei_annotations(patch.instances, patch.types, number, start)
    (out / "annotations").mkdir()
    for side, table in tables.items():
        content = {"info": {"description": f"stqp, {patches.mpp:g} µm per px"}, **table}
        content["categories"] = categories(patches.classes)
        text = json.dumps(content, separators=(",", ":"))
        files.write_bytes(out / "annotations" / f"instances_{SIDES[side]}.json", text.encode())
    return patches.classes


def _write_cellvit(patches: PatchFile, reader: _Reader, out: Path) -> list[str]:
    """CellViT's folds of images and labels, each with its tissues and cell counts, and its two configurations."""
    tissues: dict[int, list[tuple[str, str]]] = {}
    cells: dict[int, list[tuple[Any, ...]]] = {}
    for row, patch in enumerate(reader):
        folder = out / f"fold{patch.side}"
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        image = f"{patch.side}_{len(tissues.setdefault(patch.side, []))}.png"
        write_png(folder / "images" / image, patch.image)
        maps = {"inst_map": patch.instances, "type_map": patch.types.astype(np.int32)}
        # CellViT reads a pickled dict; it is written here and never read
        np.save(folder / "labels" / f"{Path(image).stem}.npy", np.array(maps, dtype=object), allow_pickle=True)
        tissue = _tissue(patches.sources[patches.source[row]].get("metadata", {}))
        tissues[patch.side].append((image, tissue))
        cells.setdefault(patch.side, []).append((image, *patches.counts[row, 1:].tolist()))
    every: dict[str, int] = {}
    for side, rows in tissues.items():
        for _, tissue in rows:
            every[tissue] = every.get(tissue, 0) + 1
        for name, header, table in (
            ("types.csv", ["img", "type"], rows),
            ("cell_count.csv", ["Image", *patches.classes], cells[side]),
        ):
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([header, *table])
            files.write_bytes(out / f"fold{side}" / name, text.getvalue().encode())
    kinds = {"Background": 0, **{c: i + 1 for i, c in enumerate(patches.classes)}}
    places = {name: i for i, name in enumerate(sorted(every))}
    config = _yaml({"tissue_types": places, "nuclei_types": kinds})
    files.write_bytes(out / "dataset_config.yaml", config.encode())
    files.write_bytes(out / "weight_config.yaml", _yaml({"tissue": dict(sorted(every.items()))}).encode())
    return patches.classes


def _yaml(content: dict[str, dict[str, int]]) -> str:
    lines = []
    for section, values in content.items():
        lines.append(f"{section}:")
        lines += [f"  {json.dumps(name, ensure_ascii=False)}: {value}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


LAYOUTS: dict[str, Callable[[PatchFile, _Reader, Path], list[str]]] = {
    "pannuke": _write_pannuke,
    "hovernet": _write_hovernet,
    "consep": _write_consep,
    "coco": _write_coco,
    "cellvit": _write_cellvit,
}
