"""A parsed .qpdata: its objects as columns, objects taken out and added, everything else kept."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import UsageError
from stqp.qupath.codec.build import Plan
from stqp.qupath.codec.carry import CarryingWriter
from stqp.qupath.codec.columns import Assembly
from stqp.qupath.codec.decode import Budget, Parts, Rows
from stqp.qupath.codec.layout import KINDS, Vocabulary
from stqp.qupath.codec.pack import Fresh
from stqp.qupath.codec.runs import Run
from stqp.qupath.java.nodes import Block, Instance, Node, StreamError
from stqp.qupath.objects import ObjectKind, Objects, PathObjects

BACKUP_SUFFIX = ".bkp"


class Document:
    """A parsed file: its top-level items, and the root of its objects."""

    def __init__(self, items: list[Any], root: Instance, vocabulary: Vocabulary, old_handles: int = 0):
        self.items = items
        self.root = root
        self.vocabulary = vocabulary
        self._old_handles = old_handles
        self._dropped: set[Node] = set()
        self._gone = np.zeros(old_handles, bool)  # handles of objects of runs
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
        return self._assembly().objects()

    def ids(self) -> Objects:
        """Ids of all objects, None where one has none; object (n,)."""
        return self._assembly().ids()

    def _assembly(self) -> Assembly:
        runs: list[tuple[Run, int, int]] = []
        singles, places = Rows(Budget(self.size)), []
        for item, parts, parent, index in self.walk():
            if parts is None:
                runs.append((item, index, parent))
            else:
                singles.add(item, parts, parent)
                places.append(index)
        return Assembly(runs, singles, places)

    def drop(self, mask: NDArray[np.bool_]) -> None:
        """Take objects out; children of theirs that stay move to their parent."""
        items = list(self.walk())
        families: dict[int, list[list[Any]]] = {}
        for item, parts, parent, index in reversed(items):
            if parts is None:
                item.keep(~mask[index : index + len(item)])
                self._gone[item.gone()] = True
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

    def replace(self, index: NDArray[np.int64], new: PathObjects) -> None:
        """Put new objects in the place of some; all others, and children, stay where they are.

        Parameters
        ----------
        index : (k,)
            Positions in the order of `objects`, each once.
        new
            ``k`` objects, whose parents do not count.

        Raises
        ------
        UsageError
            When the new objects cannot be written, or `index` does not fit.
        """
        plan = Plan(dataclasses.replace(new, parent=np.full(len(new), -1, np.int64)), self.vocabulary)
        items = list(self.walk())
        total = items[-1][3] + (len(items[-1][0]) if items[-1][1] is None else 1) if items else 0
        at = np.asarray(index, np.int64)
        if len(at) != len(new) or len(np.unique(at)) != len(at) or ((at < 0) | (at >= total)).any():
            raise UsageError(f"expected {len(new)} different positions among {total} objects, one for each new object")
        chosen = np.full(total, -1, np.int64)
        chosen[at] = np.arange(len(at))
        swapped: dict[int, dict[int, Instance]] = {}
        for item, parts, parent, position in reversed(items):
            if parts is None:
                item.replace(plan, chosen[position : position + len(item)])
                self._gone[item.gone()] = True
                continue
            children = _swapped(item, parts, swapped.pop(position, {}))
            if chosen[position] >= 0:
                self._dropped.add(item)
                node = plan.node(int(chosen[position]), children, _count(children))
                swapped.setdefault(parent, {})[id(item)] = node
        _swapped(self.root, Parts(self.root), swapped.pop(-1, {}))

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
        if node in self._dropped or (node.handle >= 0 and self._gone[node.handle]):
            raise StreamError("something else in it refers to an object that is to be replaced")


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


def _swapped(node: Instance, parts: Parts, others: dict[int, Instance]) -> list[Any]:
    """Children of an object, after some were swapped for others, by the identity of the old ones."""
    if others:
        children = node.data[parts.start : parts.stop]
        node.data[parts.start : parts.stop] = [others.get(id(child), child) for child in children]
    return node.data[parts.start : parts.stop]


def _set_children(node: Instance, parts: Parts, children: list[Any]) -> None:
    block = node.data[parts.count]
    node.data[parts.start : parts.stop] = children
    node.data[parts.count] = Block(block.data[:-4] + struct.pack(">i", _count(children)), block.long)
