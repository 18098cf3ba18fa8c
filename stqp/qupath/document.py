"""A parsed .qpdata: its objects as columns, objects taken out and added, everything else kept."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.qupath.build import Plan
from stqp.qupath.decode import Budget, Parts, Rows
from stqp.qupath.javanodes import Block, Instance, Node, StreamError
from stqp.qupath.javawriter import Writer
from stqp.qupath.layout import KINDS, Vocabulary
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.pack import Fresh
from stqp.qupath.runs import Run

BACKUP_SUFFIX = ".bkp"


class Document:
    """A parsed file: its top-level items, and the root of its objects."""

    def __init__(self, items: list[Any], root: Instance, vocabulary: Vocabulary, old_handles: int = 0):
        self.items = items
        self.root = root
        self.vocabulary = vocabulary
        self._old_handles = old_handles
        self._dropped: set[Node] = set()
        self._dropped_handles: set[int] = set()
        self.from_backup = False
        self.size = 0  # of the file, in bytes

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
        shared = Rows(Budget(self.size))
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
        plan = Plan(new, self.vocabulary)
        n = len(new)
        is_parent = np.zeros(n, bool)
        is_parent[new.parent[new.parent >= 0]] = True
        is_parent |= new.kind == ObjectKind.TMA_CORE  # nodes, as a grid refers to them
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
                make_backup(path)
        backup_of(path).unlink(missing_ok=True)

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


def backup_of(path: Path) -> Path:
    """Where the old file is kept while a new one takes its place."""
    return path.with_name(path.name + BACKUP_SUFFIX)


def make_backup(path: Path) -> None:
    """Keep the file under its backup name as well."""
    backup = backup_of(path)
    if path.exists():
        backup.unlink(missing_ok=True)
        try:
            os.link(path, backup)
        except OSError:  # not every file system has links
            shutil.copy2(path, backup)


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
