"""Tables that name many samples or slides: csv, or toml with values for all at its top."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

from stqp.errors import InputError


def read_rows(path: Path, table: str) -> list[dict[str, Any]]:
    """Read a table's rows; cells that are empty are left out.

    Parameters
    ----------
    path
        csv with a header (commas, semicolons or tabs); or toml with a table ``[[<table>]]`` for each row and, at
        its top, values for all.
    table
        What a row is: run, slide.

    Raises
    ------
    InputError
        When it is missing, cannot be read, or is empty.
    """
    if not path.is_file():
        raise InputError(f"the manifest {path} does not exist; expected csv or toml with a {table} a row")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".toml":
            content = tomllib.loads(text)
            listed = content.pop(table, [])
            rows = [{**content, **row} for row in listed]
        else:
            separator = max(",;\t", key=text.split("\n", 1)[0].count)
            read = csv.DictReader(text.splitlines(), delimiter=separator)
            rows = [{k: v for k, v in row.items() if v} for row in read]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, csv.Error, TypeError, AttributeError) as error:
        raise InputError(f"the manifest {path} cannot be read ({error}); expected csv or toml") from error
    if not rows:
        raise InputError(f"the manifest {path} names no {table}; expected a row for each")
    return rows
