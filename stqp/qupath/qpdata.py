"""The objects of an image in QuPath's data.qpdata: read, write, and change without loss."""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from stqp.errors import InputError, UsageError
from stqp.qupath.codec.decode import class_text
from stqp.qupath.codec.document import Document, backup_of
from stqp.qupath.codec.layout import HIERARCHY, IMAGE_TYPE, PATH_CLASS, ROOT, WORKFLOW, Vocabulary
from stqp.qupath.codec.runs import RunReader
from stqp.qupath.image import ImageData, Stains, WorkflowStep, image_data, set_image, set_tma_grid
from stqp.qupath.java.nodes import NULL, Block, EnumNode, Instance, Reset, StreamError, Text, encode
from stqp.qupath.objects import Mask, ObjectKind, PathObjects, random_ids

logger = logging.getLogger(__name__)

# a damaged file may hold any node where another belongs
_BROKEN = (StreamError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, struct.error)

Choice = Callable[[PathObjects], ArrayLike] | ArrayLike


def read_objects(path: Path) -> PathObjects:
    """Read the objects of an image.

    Parameters
    ----------
    path
        A ``data.qpdata`` of QuPath 0.3 to 0.7. Where it is missing or broken, the backup that QuPath and
        stqp keep while saving (``data.qpdata.bkp``) is read.

    Returns
    -------
    PathObjects
        Parents before their children, otherwise in the order of the file.

    Raises
    ------
    InputError
        When the file is truncated, or holds what stqp does not know.
    """
    with _readable(path):
        return _load(path).objects()


def rewrite(path: Path, drop: Choice, new: PathObjects, target: Path | None = None) -> PathObjects:
    """Take objects out of a file and append others; everything else in it stays.

    Parameters
    ----------
    path
        An existing ``data.qpdata``; it is replaced atomically.
    drop : callable or bool (n,)
        Mask of the objects to take out, or a function that makes it of the objects present. Children of
        such an object that stay move to its parent.
    new
        Appended to the root.
    target
        Written in place of `path`, which then stays as it is.

    Returns
    -------
    PathObjects
        What the file now holds.

    Raises
    ------
    InputError
        When the file cannot be read, or something in it cannot be carried over; it is then unchanged.
    UsageError
        When the new objects cannot be written.
    """
    with _readable(path):
        document = _load(path)
        present = document.objects()
    mask = mask_to_drop(path, present, drop, new)
    try:
        document.drop(mask)
        document.append(new)
        document.save(target or path)
    except StreamError as error:
        raise InputError(f"{path} cannot be changed without loss ({error}); it is left as it was") from error
    return PathObjects.concatenate([present.take(~mask), new])


def update(path: Path, index: ArrayLike, new: PathObjects, target: Path | None = None) -> None:
    """Put new objects in the place of some; these keep their parents and children, and all else stays.

    Parameters
    ----------
    path
        An existing ``data.qpdata``; it is replaced atomically.
    index : int (k,)
        Positions of the objects to replace in the order of `read_objects`, each once.
    new
        ``k`` objects of any kind, in that order; their ids may be those of the old ones, and the column
        `parent` does not count.
    target
        Written in place of `path`, which then stays as it is.

    Raises
    ------
    InputError
        When the file cannot be read, or something else in it refers to one of the old objects, or has the id
        of a new one; it is then unchanged.
    UsageError
        When the new objects cannot be written, or are not as many as the positions.
    """
    with _readable(path):
        document = _load(path)
        ids = document.ids()
    at = np.asarray(index, np.int64).reshape(-1)
    if (new.kind == ObjectKind.TMA_CORE).any():
        raise UsageError("TMA cores can be written to a new file only; here they can be read and kept")
    try:
        document.replace(at, new)
        clash = set(new.ids.tolist()).intersection(np.delete(ids, at).tolist())
        if clash:
            raise InputError(f"{path} already has an object with the id {min(clash)}, which is to be added")
        document.save(target or path)
    except StreamError as error:
        raise InputError(f"{path} cannot be changed without loss ({error}); it is left as it was") from error


def mask_to_drop(path: Path, present: PathObjects, drop: Choice, new: PathObjects) -> Mask:
    """Decide which objects of a file are taken out before others are appended; bool (n,).

    Parameters
    ----------
    path
        For messages.
    present
        The file's objects.
    drop, new
        As `rewrite` has them.

    Raises
    ------
    InputError
        When what stays and what is new have an id in common, or TMA cores would go.
    UsageError
        When the mask is not one of these objects, or TMA cores would come.
    """
    mask = np.asarray(drop(present) if callable(drop) else drop, dtype=bool)
    if mask.shape != (len(present),):
        raise UsageError(f"the mask has shape {mask.shape}, but {path} has {len(present)} objects")
    if (new.kind == ObjectKind.TMA_CORE).any():
        raise UsageError("TMA cores can be written to a new file only; here they can be read and kept")
    if (mask & (present.kind == ObjectKind.TMA_CORE)).any():
        raise InputError(f"{path} has TMA cores among the objects to replace; only QuPath can take them out")
    clash = set(present.ids[~mask].tolist()).intersection(new.ids.tolist())
    if clash:
        raise InputError(f"{path} already has an object with the id {min(clash)}, which is to be added")
    return mask


def read_image_data(path: Path) -> ImageData:
    """Read an image's objects, type, stains, workflow and properties; as `read_objects` otherwise."""
    with _readable(path):
        return image_data(_load(path))


def edit_image_data(
    path: Path,
    *,
    image_type: str | None = None,
    stains: Stains | None = None,
    steps: Sequence[WorkflowStep] = (),
    properties: Mapping[str, str | int | float | bool] | None = None,
    target: Path | None = None,
) -> None:
    """Change what a file holds beside its objects; what is not named, and all objects, stay.

    Parameters
    ----------
    path
        An existing ``data.qpdata``; it is replaced atomically.
    image_type, stains, steps, properties
        As for `stqp.qupath.image.set_image`.
    target
        Written in place of `path`, which then stays as it is.

    Raises
    ------
    InputError
        When the file cannot be read; it is then unchanged.
    UsageError
        When QuPath has no such type of image.
    """
    with _readable(path):
        document = _load(path)
        set_image(document, image_type, stains, steps, properties)
        document.save(target or path)


def write_new(
    path: Path,
    new: PathObjects,
    server_json: str,
    properties: Mapping[str, str | int | float | bool] | None = None,
    *,
    image_type: str = "BRIGHTFIELD_H_E",
    stains: Stains | None = None,
    steps: Sequence[WorkflowStep] = (),
    tma_grid: tuple[int, int] | None = None,
) -> None:
    """Write a new file with these objects.

    Parameters
    ----------
    path
        Replaced when it exists.
    new
        The objects.
    server_json
        What QuPath keeps of the image in the file's head.
    properties
        Text, numbers and truth values by key.
    image_type, stains, steps
        As for `stqp.qupath.image.set_image`; without stains, QuPath takes its own for the type.
    tma_grid
        Width and height of the grid that the TMA cores among the objects make, row by row.

    Raises
    ------
    UsageError
        When the objects cannot be written.
    """
    if tma_grid is None and (new.kind == ObjectKind.TMA_CORE).any():
        raise UsageError("TMA cores need a grid; give its width and height")
    v = Vocabulary()
    country, empty, language = Text(b"US"), Text(b""), Text(b"en")
    locale = v.serial("java.util.Locale", b"\xff\xff\xff\xff", [country, empty, language, empty, empty], [])
    workflow = Instance(v.desc(WORKFLOW), [Block(struct.pack(">ii", 1, 0))])
    identity = v.metadata([("Object ID", Text(random_ids(1)[0].encode()))])
    root = Instance(v.desc(ROOT), [NULL, NULL, identity, NULL, Block(bytes(4))])
    version = b"Data file version 3"
    document = Document(
        [
            Block(struct.pack(">H", len(version)) + version),
            Text(encode(server_json)),
            locale,
            EnumNode(v.desc(IMAGE_TYPE), Text(b"UNSET")),
            NULL,
            workflow,
            v.serial(HIERARCHY, b"", [root, NULL]),
            v.hash_map([]),
            Text(b"EOF"),
        ],
        root,
        v,
    )
    set_image(document, image_type, stains, steps, properties)
    document.append(new)
    if tma_grid is not None:
        set_tma_grid(document, tma_grid)
    document.save(path)


def _load(path: Path) -> Document:
    """Parse a file, or its backup."""
    backup = backup_of(path)
    try:
        return _parse(path)
    except (FileNotFoundError, *_BROKEN) as error:
        if not backup.exists():
            raise
        document = _parse(backup)
        document.from_backup = True
        logger.warning("%s cannot be read (%s); its backup %s is used", path, error, backup.name)
        return document


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file in what a broken one leads to."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected the objects of an image of a QuPath project") from error
    except _BROKEN as error:
        raise InputError(f"{path} cannot be read as QuPath data: {error}; is it whole?") from error


def _parse(path: Path) -> Document:
    data = path.read_bytes()
    reader = RunReader(data)
    items = reader.read()
    if any(isinstance(item, Reset) for item in items):
        raise StreamError("it is written in pieces, as QuPath does not")
    hierarchy = next((i for i in items if isinstance(i, Instance) and i.desc.name == HIERARCHY), None)
    if hierarchy is None:
        raise StreamError("it has no object hierarchy")
    if not isinstance(items[-1], Text) or items[-1].raw != b"EOF":
        raise StreamError("its end mark is missing")
    root = hierarchy.get("rootObject")
    if not isinstance(root, Instance) or root.desc.name != ROOT:
        raise StreamError("it has no root object")
    path_classes: dict[str, Instance] = {}
    for node in reader.table.values():
        if isinstance(node, Instance) and node.desc.name == PATH_CLASS:
            path_classes.setdefault(class_text(node)[0], node)
    vocabulary = Vocabulary(reader.classes, path_classes)
    document = Document(items, root, vocabulary, reader.next_handle)
    document.size = len(data)
    return document
