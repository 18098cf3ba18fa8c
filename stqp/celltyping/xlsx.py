"""The first sheet of an xlsx as rows of text; CellMarker comes as one, and needs no more of the format."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from stqp.errors import InputError

_SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_first_sheet(path: Path) -> list[list[str]]:
    """Read the cells of the first sheet as text; a cell that is not there is an empty text.

    Raises
    ------
    InputError
        When the file is no workbook.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            sheets = sorted((n for n in names if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", n)), key=_number)
            if not sheets:
                raise InputError(f"{path} holds no sheet; expected an Excel workbook")
            shared: list[str] = []
            if "xl/sharedStrings.xml" in names:
                with archive.open("xl/sharedStrings.xml") as stream:
                    shared = [_text(e) for _, e in ElementTree.iterparse(stream) if e.tag == f"{_SPACE}si"]
            with archive.open(sheets[0]) as stream:
                return list(_rows(stream, shared))
    except (zipfile.BadZipFile, ElementTree.ParseError, IndexError, ValueError) as error:
        raise InputError(f"{path} is no Excel workbook that can be read ({error}); save it as csv") from error


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name.rsplit("/", 1)[-1]))


def _text(element: ElementTree.Element) -> str:
    """Text of a string; phonetic readings (rPh) are none of it."""
    runs = [element.find(f"{_SPACE}t"), *(r.find(f"{_SPACE}t") for r in element.findall(f"{_SPACE}r"))]
    return "".join(t.text or "" for t in runs if t is not None)


def _rows(stream: IO[bytes], shared: list[str]) -> Iterator[list[str]]:
    for _, row in ElementTree.iterparse(stream):
        if row.tag != f"{_SPACE}row":
            continue
        values: list[str] = []
        for cell in row.findall(f"{_SPACE}c"):
            column = _column(cell.get("r") or "")
            values += [""] * (column - len(values)) if column is not None else []
            values.append(_value(cell, shared))
        row.clear()
        yield values


def _column(reference: str) -> int | None:
    letters = re.match(r"[A-Z]+", reference)
    if letters is None:
        return None
    number = 0
    for letter in letters[0]:
        number = number * 26 + ord(letter) - 64
    return number - 1


def _value(cell: ElementTree.Element, shared: list[str]) -> str:
    kind = cell.get("t")
    if kind == "inlineStr":
        inline = cell.find(f"{_SPACE}is")
        return "" if inline is None else _text(inline)
    value = cell.findtext(f"{_SPACE}v") or ""
    return shared[int(value)] if kind == "s" and value else value
