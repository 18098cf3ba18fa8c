"""Clumps that reach over several tiles, put together from what each tile saw, as soon as all have been seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from stqp.inference.clumps import Border, Part, Pixel, Tiling, grow
from stqp.inference.store import Region

_Node = tuple[int, int]  # tile, label


@dataclass(frozen=True)
class Task:
    """Something to post-process that is no tile.

    Attributes
    ----------
    first : Pixel
        A pixel of the clump; with `core`, the key of the task.
    region : Region
        What is to be read.
    core : Region or None
        Of a clump too large to be processed whole: only nuclei whose centres lie here are wanted.
    """

    first: Pixel
    region: Region
    core: Region | None = None

    @property
    def key(self) -> str:
        """Name of the task; the same in every run."""
        return f"{'part' if self.core else 'clump'} {self.first[0]} {self.first[1]}"


@dataclass
class _Group:
    box: Region
    first: Pixel
    parts: list[Part]
    open: set[int]  # tiles that may hold more of it
    cut: bool = False


@dataclass
class Stitcher:
    """Joins the parts of clumps across tiles.

    Attributes
    ----------
    tiling : Tiling
    max_clump : int
        Largest bounding box, in px, of a clump that is processed whole.
    reach : int
        px around a clump that are read.
    """

    tiling: Tiling
    max_clump: int
    reach: int
    _groups: dict[_Node, _Group] = field(default_factory=dict)  # by root
    _parent: dict[_Node, _Node] = field(default_factory=dict)
    _borders: dict[int, Border] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)
    _waiting: dict[int, set[str]] = field(default_factory=dict)  # tile -> tasks that are not done
    _tiles_of: dict[str, set[int]] = field(default_factory=dict)
    _unstitched: dict[int, int] = field(default_factory=dict)  # tile -> its parts in groups that are open

    def add(self, number: int, parts: Iterable[Part], border: Border | None) -> list[Task]:
        """Take what a tile saw; give the tasks that became ready.

        Parameters
        ----------
        number
            The tile; each once.
        parts, border
            As `clumps.leaving_parts` gives them; none of a tile without foreground.
        """
        self._seen.add(number)
        neighbours = self._neighbours(number)
        touched = {root for root, group in self._groups.items() if number in group.open}
        for part in parts:
            node = part.tile, part.label
            self._parent[node] = node
            open_tiles = self._beyond(border, part.label) - self._seen if border is not None else set()
            self._groups[node] = _Group(part.box, part.first, [part], open_tiles)
            self._unstitched[number] = self._unstitched.get(number, 0) + 1
            touched.add(node)
        if border is not None and (len(border.inner) or len(border.outer)):
            self._borders[number] = border
            for other in neighbours:
                if other in self._borders:
                    self._link(number, border, other, self._borders[other])
        tasks: list[Task] = []
        for root in sorted({self._root(node) for node in touched}):
            group = self._groups.get(root)
            if group is None:
                continue
            group.open.discard(number)
            tasks += self._settle(root, group)
        self._forget()
        return tasks

    def done(self, task: Task) -> None:
        """Note that a task is finished."""
        for tile in self._tiles_of.pop(task.key):
            self._waiting[tile].discard(task.key)

    def is_closed(self, number: int) -> bool:
        """Whether nothing more will be read for what a tile holds."""
        return number in self._seen and not self._unstitched.get(number) and not self._waiting.get(number)

    def tiles_of(self, task: Task) -> set[int]:
        """Tiles whose maps an unfinished task reads."""
        return self._tiles_of[task.key]

    def _settle(self, root: _Node, group: _Group) -> list[Task]:
        """Tasks of a group that became complete, or too large."""
        x0, y0, x1, y1 = group.box
        if group.cut or (x1 - x0) * (y1 - y0) > self.max_clump:
            group.cut = True
            tasks = [
                self._task(Task(p.first, self.tiling.window(p.tile), self.tiling.core(p.tile)), [p])
                for p in group.parts
            ]
            group.parts = []
            if not group.open:
                del self._groups[root]
            return tasks
        if group.open:
            return []
        del self._groups[root]
        if self.tiling.holds_whole(self.tiling.window(self.tiling.number(group.first)), group.box):
            self._release(group.parts)
            return []  # that tile has processed it
        region = self.tiling.clip(grow(group.box, self.reach))
        return [self._task(Task(group.first, region), group.parts)]

    def _task(self, task: Task, parts: list[Part]) -> Task:
        tiles = {part.tile for part in parts}
        self._tiles_of[task.key] = tiles
        for tile in tiles:
            self._waiting.setdefault(tile, set()).add(task.key)
        self._release(parts)
        return task

    def _release(self, parts: list[Part]) -> None:
        for part in parts:
            self._unstitched[part.tile] -= 1

    def _link(self, a: int, border_a: Border, b: int, border_b: Border) -> None:
        """Join groups of two tiles whose parts meet."""
        for tile, mine, other, theirs in ((a, border_a, b, border_b), (b, border_b, a, border_a)):
            _, i, j = np.intersect1d(mine.outer, theirs.inner, assume_unique=True, return_indices=True)
            pairs = np.unique(np.column_stack((mine.outer_labels[i], theirs.inner_labels[j])), axis=0)
            for own, found in pairs.tolist():
                self._join((tile, own), (other, found))

    def _join(self, a: _Node, b: _Node) -> None:
        if a not in self._parent or b not in self._parent:
            return  # of a part that lies in the margin alone
        first, second = sorted((self._root(a), self._root(b)))
        if first == second:
            return
        self._parent[second] = first
        one, two = self._groups[first], self._groups.pop(second)
        one.box = (
            min(one.box[0], two.box[0]), min(one.box[1], two.box[1]),
            max(one.box[2], two.box[2]), max(one.box[3], two.box[3]),
        )  # fmt: skip
        one.first = min(one.first, two.first, key=lambda p: (p[1], p[0]))
        one.parts += two.parts
        one.open |= two.open
        one.cut |= two.cut

    def _root(self, node: _Node) -> _Node:
        root = node
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[node] != root:
            self._parent[node], node = root, self._parent[node]
        return root

    def _neighbours(self, number: int) -> list[int]:
        row, column = self.tiling.place(number)
        rows, columns = self.tiling.shape
        return [
            r * columns + c
            for r in range(max(row - 1, 0), min(row + 2, rows))
            for c in range(max(column - 1, 0), min(column + 2, columns))
            if (r, c) != (row, column)
        ]

    def _beyond(self, border: Border, label: int) -> set[int]:
        """Tiles that own the pixels where a part leaves its tile."""
        pixels = border.outer[border.outer_labels == label]
        y, x = np.divmod(pixels, self.tiling.width)
        tiles = y // self.tiling.tile * self.tiling.shape[1] + x // self.tiling.tile
        return {int(t) for t in np.unique(tiles)}

    def _forget(self) -> None:
        """Drop the borders of tiles all of whose neighbours were seen."""
        for tile in [t for t in self._borders if all(n in self._seen for n in self._neighbours(t))]:
            del self._borders[tile]
