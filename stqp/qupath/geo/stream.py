"""A GeoJSON file, of any size, as one feature after the other.

Coordinates go to their store as the text comes in, so that little is left to read as JSON; and children are taken
out of their parents, so that a slide's nuclei within one annotation are as easy as side by side.
"""

from __future__ import annotations

import enum
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stqp.errors import InputError
from stqp.qupath.geo.coordinates import CoordinateStore

BLOCK = 1 << 20
_LONGEST = 1 << 30
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_BLANK = re.compile(r"[\s,\x1e]*")  # RFC 8142 puts 0x1e between features
_FEATURES = re.compile(r'"features"\s*:\s*\[')
_CHILDREN = re.compile(r'"(?:childObjects|children)"\s*:\s*\[(?=\s*[{\]])')
_HEAD = 1 << 16


class Event(enum.Enum):
    """What a stream comes upon."""

    WHOLE = 0
    """A feature, a collection of features or a geometry."""
    OPENED = 1
    """A feature up to its children, which come next."""
    CLOSED = 2
    """What follows the children of the last feature that was opened."""


class Broken(Exception):
    """The text is no GeoJSON; the message says how, after the name of the file."""


def blocks(path: Path) -> Iterator[bytes]:
    """Read a file in pieces; of a zip, each member that QuPath would read.

    Raises
    ------
    InputError
        When it cannot be read, or is compressed and damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start.startswith(_ZIP):
                yield from _zipped(path)
                return
            yield from _plain(file, start)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as GeoJSON: {str(error).rstrip('.')}") from error


def _plain(file: IO[bytes], start: bytes) -> Iterator[bytes]:
    import gzip

    if start.startswith(_GZIP):
        with gzip.open(file) as inner:
            while block := inner.read(BLOCK):
                yield block
        return
    while block := file.read(BLOCK):
        yield block


def _zipped(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.lower().endswith((".json", ".geojson"))]
        if not names:
            raise InputError(f"{path} has no .geojson and no .json within")
        for name in names:
            with archive.open(name) as member:
                while block := member.read(BLOCK):
                    yield block
            yield b"\n"


class FeatureStream:
    """Finds features in text that comes in pieces.

    Parameters
    ----------
    source
        Pieces of the text, UTF-8.
    store
        Takes the coordinates.
    """

    def __init__(self, source: Iterator[bytes], store: CoordinateStore):
        self._source, self._store = source, store
        self._tail = b""
        self._ended = False
        self._text, self._place = "", 0
        self._started = False
        # children are looked for once for each piece of text
        self._child: re.Match[str] | None = None
        self._before = ""
        self._before_start = 0
        self._looked = False
        self._decoder = json.JSONDecoder()

    def events(self) -> Iterator[tuple[Event, Any]]:
        """Features in their order.

        Raises
        ------
        Broken
            When the text is no GeoJSON.
        """
        alone = False  # whether documents of one feature each follow one another
        while self._skip():
            sign = self._text[self._place]
            if sign == "[":
                self._place += 1
                yield from self._members()
            elif sign != "{":
                raise Broken(f"has {sign!r} where a GeoJSON object begins")
            elif not alone and self._enter():
                yield from self._members()
                self._rest('{"":0')
            else:
                event, item = self._member()
                yield event, item
                if event is Event.OPENED:
                    yield from self._members()
                    yield Event.CLOSED, self._rest('{"properties":{"":0')
                alone = isinstance(item, dict) and item.get("type") == "Feature"

    def _enter(self) -> bool:
        """Go into the features of a collection, where the object here is one."""
        while True:
            found = _FEATURES.search(self._text, self._place, self._place + _HEAD)
            if found is not None or len(self._text) - self._place >= _HEAD or not self._more():
                break
        if found is None:
            return False
        head = self._text[self._place : found.start()] + '"":0}'
        try:
            _, end = self._decoder.raw_decode(head)
        except json.JSONDecodeError:
            return False
        if end != len(head):
            return False
        self._move(found.end())
        return True

    def _members(self) -> Iterator[tuple[Event, Any]]:
        """Members of the array that was entered, with the children of each, to its end."""
        depth = 0
        while True:
            if not self._skip():
                raise Broken("ends in the middle of a list of features")
            if self._text[self._place] != "]":
                event, item = self._member()
                yield event, item
                depth += event is Event.OPENED
                continue
            self._place += 1
            if not depth:
                return
            depth -= 1
            yield Event.CLOSED, self._rest('{"properties":{"":0')

    def _member(self) -> tuple[Event, Any]:
        """Read one object, up to its children where it has some."""
        if not self._looked:
            self._look()
        if self._child is not None:
            try:
                item, end = self._decoder.raw_decode(self._before, self._place - self._before_start)
                if end < len(self._before):
                    self._place = self._before_start + end
                    return Event.WHOLE, item
                if isinstance(item, dict) and isinstance(item.get("properties"), dict) and "" in item["properties"]:
                    self._move(self._child.end())
                    return Event.OPENED, item
            except json.JSONDecodeError:
                pass  # these are not a feature's children
        return Event.WHOLE, self._value()

    def _look(self) -> None:
        self._looked = True
        self._child = _CHILDREN.search(self._text, self._place)
        if self._child is not None:
            self._before = self._text[self._place : self._child.start()] + '"":0}}'
            self._before_start = self._place

    def _move(self, place: int) -> None:
        self._place = place
        self._looked = False

    def _value(self) -> Any:
        while True:
            try:
                item, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                self._wait(error, self._text)
                continue
            self._place = end
            self._looked &= self._child is None or end <= self._child.start()
            return item

    def _rest(self, head: str) -> Any:
        """Read the end of an object of which `head` stands for the beginning."""
        window = 1024
        while True:
            text = head + self._text[self._place : self._place + window]
            try:
                item, end = self._decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                if self._place + window < len(self._text):
                    window *= 8
                else:
                    self._wait(error, text)
                continue
            self._move(self._place + end - len(head))
            return item

    def _wait(self, error: json.JSONDecodeError, text: str) -> None:
        """Get more text when the error may come from its end."""
        cut = error.pos > len(text) - 16 or error.msg.startswith(("Unterminated", "Invalid \\"))
        if not cut or len(self._text) - self._place > _LONGEST:
            raise Broken(f"is no JSON there: {error.msg[0].lower()}{error.msg[1:]}") from error
        if not self._more():
            raise Broken("ends in the middle of a feature") from error

    def _skip(self) -> bool:
        """Go to the next character that is no blank or comma; False at the end."""
        while True:
            self._place = _BLANK.match(self._text, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._text):
                return True
            if not self._more():
                return False

    def _more(self) -> bool:
        """Get more text, as much as there is already; False at the end."""
        while not self._ended:
            pieces, size = [self._tail], len(self._text) - self._place
            for block in self._source:
                pieces.append(block)
                size -= len(block)
                if size <= 0:
                    break
            else:
                self._ended = True
            data = b"".join(pieces)
            # no list of coordinates goes over a brace
            end = len(data) if self._ended else data.rfind(b"}") + 1
            data, self._tail = data[:end], data[end:]
            if len(self._tail) > _LONGEST:
                raise Broken("has no end of an object for a gigabyte")
            if not self._started and data:
                self._started = True
                data = _checked_start(data)
            if data:
                self._add(data)
                return True
        return False

    def _add(self, data: bytes) -> None:
        try:
            text = self._store.take_from(data).decode()
        except UnicodeDecodeError as error:
            raise Broken(f"is not UTF-8 ({error.reason})") from error
        self._text, self._place = self._text[self._place :] + text, 0
        self._looked = False


def _checked_start(data: bytes) -> bytes:
    """Beginning of a file, without a byte order mark."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Broken("is UTF-16, but GeoJSON is UTF-8; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")
