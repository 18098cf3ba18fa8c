"""The objects of an image in QuPath's data.qpdata: read, write, and change without loss."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.qupath.build import Plan
from stqp.qupath.decode import Parts, Rows, class_text
from stqp.qupath.javastream import (
    MAGIC,
    NULL,
    Block,
    EnumNode,
    Instance,
    Node,
    Reset,
    StreamError,
    Text,
    Writer,
    encode,
)
from stqp.qupath.layout import HIERARCHY, KINDS, PATH_CLASS, ROOT, Q, Vocabulary
from stqp.qupath.objects import ObjectKind, PathObjects, random_ids
from stqp.qupath.pack import Fresh
from stqp.qupath.runs import Run, RunReader

logger = logging.getLogger(__name__)
BACKUP_SUFFIX = ".bkp"
_OBJECT_CLASSES = {ROOT, *KINDS}

# a damaged file may hold any node where another belongs
_BROKEN = (StreamError, ValueError, TypeError, AttributeError, LookupError, OverflowError, struct.error)

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
    mask = np.asarray(drop(present) if callable(drop) else drop, dtype=bool)
    if mask.shape != (len(present),):
        raise UsageError(f"the mask has shape {mask.shape}, but {path} has {len(present)} objects")
    if (mask & (present.kind == ObjectKind.TMA_CORE)).any():
        raise InputError(f"{path} has TMA cores among the objects to replace; only QuPath can take them out")
    kept = present.take(~mask)
    clash = set(kept.ids.tolist()).intersection(new.ids.tolist())
    if clash:
        raise InputError(f"{path} already has an object with the id {min(clash)}, which is to be added")
    try:
        document.drop(mask)
        document.append(new)
        document.save(target or path)
    except StreamError as error:
        raise InputError(f"{path} cannot be changed without loss ({error}); it is left as it was") from error
    return PathObjects.concatenate([kept, new])


def write_new(path: Path, new: PathObjects, server_json: str, properties: Mapping[str, str] | None = None) -> None:
    """Write a file with these objects and nothing else, of image type H&E.

    Parameters
    ----------
    path
        Replaced when it exists.
    new
        The objects.
    server_json
        What QuPath keeps of the image in the file's head.
    properties
        Text by key.

    Raises
    ------
    UsageError
        When the objects cannot be written.
    """
    v = Vocabulary()
    country, empty, language = Text(b"US"), Text(b""), Text(b"en")
    locale = v.serial("java.util.Locale", b"\xff\xff\xff\xff", [country, empty, language, empty, empty], [])
    workflow = Instance(v.desc(Q + "plugins.workflow.Workflow"), [Block(struct.pack(">ii", 1, 0))])
    identity = v.metadata([("Object ID", Text(random_ids(1)[0].encode()))])
    root = Instance(v.desc(ROOT), [NULL, NULL, identity, NULL, Block(bytes(4))])
    pairs = [(Text(encode(k)), Text(encode(t))) for k, t in (properties or {}).items()]
    version = b"Data file version 3"
    document = Document(
        [
            Block(struct.pack(">H", len(version)) + version),
            Text(encode(server_json)),
            locale,
            EnumNode(v.desc(Q + "images.ImageData$ImageType"), Text(b"BRIGHTFIELD_H_E")),
            NULL,
            workflow,
            v.serial(HIERARCHY, b"", [root, NULL]),
            v.hash_map(pairs),
            Text(b"EOF"),
        ],
        root,
        v,
    )
    document.append(new)
    document.save(path)


class Document:
    """A parsed file: its top-level items, and the root of its objects."""

    def __init__(self, items: list[Any], root: Instance, vocabulary: Vocabulary, old_handles: int = 0):
        self.items = items
        self.root = root
        self._vocabulary = vocabulary
        self._old_handles = old_handles
        self._dropped: set[Node] = set()
        self._dropped_handles: set[int] = set()
        self.from_backup = False

    def walk(self) -> Iterator[tuple[Any, Parts | None, int, int]]:
        """Item, its parts (None for a run), position of its parent and of itself; parents first."""
        parts = Parts(self.root)
        stack = [(iter(self.root.data[parts.start : parts.stop]), -1)]
        index = 0
        while stack:
            children, parent = stack[-1]
            for item in children:
                if isinstance(item, Run):
                    yield item, None, parent, index
                    index += len(item)
                    continue
                if not isinstance(item, Instance) or item.desc.name not in KINDS:
                    name = item.desc.name if isinstance(item, Instance) else type(item).__name__
                    raise StreamError(f"there is an object of the unknown class {name}")
                parts = Parts(item)
                yield item, parts, parent, index
                index += 1
                if parts.stop > parts.start:
                    stack.append((iter(item.data[parts.start : parts.stop]), index - 1))
                    break
            else:
                stack.pop()

    def objects(self) -> PathObjects:
        """All objects as columns."""
        pieces: list[PathObjects] = []
        parents: list[NDArray[np.int64]] = []
        shared = Rows()
        rows = shared.fresh()
        for item, parts, parent, _ in self.walk():
            if parts is not None:
                rows.add(item, parts, parent)
                continue
            if len(rows):
                pieces.append(rows.finish())
                rows = shared.fresh()
            pieces.append(item.objects(shared))
            pieces[-1].parent[:] = parent
        if len(rows):
            pieces.append(rows.finish())
        parents = [p.parent for p in pieces]
        result = PathObjects.concatenate(pieces)
        if pieces:
            result.parent = np.concatenate(parents)
        result.class_colors = dict(shared.colors)
        return result

    def drop(self, mask: NDArray[np.bool_]) -> None:
        """Take objects out; children of theirs that stay move to their parent."""
        items = list(self.walk())
        families: dict[int, list[list[Any]]] = {}
        for item, parts, parent, index in reversed(items):
            if parts is None:
                item.keep(~mask[index : index + len(item)])
                self._dropped_handles.update(item.dropped_handles())
                families.setdefault(parent, []).append([item])
                continue
            own = [i for group in reversed(families.pop(index, [])) for i in group]
            if mask[index]:
                self._dropped.add(item)
                families.setdefault(parent, []).append(own)
            else:
                if parts.stop > parts.start:
                    _set_children(item, parts, own)
                families.setdefault(parent, []).append([item])
        own = [i for group in reversed(families.pop(-1, [])) for i in group]
        _set_children(self.root, Parts(self.root), own)

    def append(self, new: PathObjects) -> None:
        """Add objects to the root, after those present."""
        plan = Plan(new, self._vocabulary)
        n = len(new)
        is_parent = np.zeros(n, bool)
        is_parent[new.parent[new.parent >= 0]] = True
        # children of one parent in order: the leaves between two parents are one item
        families: dict[int, list[Any]] = {}
        for index in np.flatnonzero(is_parent)[::-1].tolist():
            families[index] = []
        order = np.argsort(new.parent, kind="stable")
        by_parent = new.parent[order]
        for owner in np.unique(by_parent)[::-1].tolist():
            own = order[np.searchsorted(by_parent, owner) : np.searchsorted(by_parent, owner, "right")]
            families[owner] = _family(plan, own, is_parent, families)
        parts = Parts(self.root)
        _set_children(self.root, parts, self.root.data[parts.start : parts.stop] + families.get(-1, []))

    def save(self, path: Path) -> None:
        """Write the file; the old one is there as a backup until the new one is complete.

        Raises
        ------
        StreamError
            When something kept refers to something dropped; the old file is then unchanged.
        """
        with files.replacing(path) as temporary:
            with temporary.open("wb") as file:
                writer = CarryingWriter(file.write, self._refuse, self._old_handles)
                writer.write(self.items)
            if not self.from_backup:
                _make_backup(path)
        _backup_of(path).unlink(missing_ok=True)

    def _refuse(self, node: Node) -> None:
        if node in self._dropped or node.handle in self._dropped_handles:
            raise StreamError("something else in it refers to an object that is to be replaced")


class CarryingWriter(Writer):
    """A writer that also knows where the nodes of the stream that was read went.

    Parameters
    ----------
    sink, refuse
        As for `Writer`.
    old_handles
        Number of handles in the stream that was read.
    """

    def __init__(self, sink: Callable[[bytes], Any], refuse: Callable[[Node], None], old_handles: int):
        super().__init__(sink, refuse)
        self.moved = np.full(old_handles, -1, np.int64)

    def placed(self, node: Node) -> int:
        """Handle of a node that is already written, or -1."""
        return int(self.moved[node.handle]) if node.handle >= 0 else self.handles.get(node, -1)

    def number(self, node: Node) -> None:
        """Give a node the next handle."""
        if node.handle >= 0:
            self.moved[node.handle] = self.next_handle
            self.next_handle += 1
        else:
            super().number(node)

    def reset(self) -> None:
        """Forget all handles."""
        super().reset()
        self.moved[:] = -1


def replace_with_backup(source: Path, path: Path) -> None:
    """Move a complete file to its place; the old one is there as a backup until that is done."""
    with files.disk_errors(path):
        try:
            _parse_head(path)
        except (OSError, StreamError):
            pass  # the backup that is there, if any, is worth more
        else:
            _make_backup(path)
        source.replace(path)
        _backup_of(path).unlink(missing_ok=True)


def _parse_head(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise StreamError("it does not begin as a Java object stream does")
        file.seek(-3, os.SEEK_END)
        if file.read() != b"EOF":
            raise StreamError("its end mark is missing")


def _backup_of(path: Path) -> Path:
    return path.with_name(path.name + BACKUP_SUFFIX)


def _make_backup(path: Path) -> None:
    """Keep the file under its backup name as well."""
    backup = _backup_of(path)
    if path.exists():
        backup.unlink(missing_ok=True)
        try:
            os.link(path, backup)
        except OSError:  # not every file system has links
            shutil.copy2(path, backup)


def _load(path: Path) -> Document:
    """Parse a file, or its backup."""
    backup = _backup_of(path)
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
    return Document(items, root, vocabulary, reader.next_handle)


def _family(
    plan: Plan, own: NDArray[np.int64], is_parent: NDArray[np.bool_], families: dict[int, list[Any]]
) -> list[Any]:
    """Items of one parent's children, whose own families are known."""
    result: list[Any] = []
    edges = np.flatnonzero(np.diff(is_parent[own].astype(np.int8))) + 1
    for piece in np.split(own, edges):
        if is_parent[piece[0]]:
            result += [plan.node(i, families[i], _count(families[i])) for i in piece.tolist()]
        else:
            result.append(Fresh(plan, piece))
    return result


def _count(children: list[Any]) -> int:
    return sum(len(c) if isinstance(c, (Run, Fresh)) else 1 for c in children)


def _set_children(node: Instance, parts: Parts, children: list[Any]) -> None:
    block = node.data[parts.count]
    node.data[parts.start : parts.stop] = children
    node.data[parts.count] = Block(block.data[:-4] + struct.pack(">i", _count(children)), block.long)
