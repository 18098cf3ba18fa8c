"""The versions that the generator can write, each with what is hard about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stqp.errors import UsageError
from stqp.sources.xenium_versions import LAYOUTS, Layout


@dataclass(frozen=True)
class Made:
    """How a made-up bundle is written.

    Attributes
    ----------
    layout
        Of its version.
    software
        Its ``analysis_sw_version``.
    ids : {"integers", "text", "bytes"}
        What the tables have as ids.
    tables
        Endings of the tables that are written.
    proteins
        Whether it measured proteins.
    experiment
        More of ``experiment.xenium``.
    """

    layout: Layout
    software: str
    ids: str = "text"
    tables: tuple[str, ...] = (".parquet",)
    proteins: bool = False
    experiment: dict[str, Any] = field(default_factory=dict)


_BY_NAME = {layout.name: layout for layout in LAYOUTS}
MADE = {
    "1.0": Made(_BY_NAME["1.0 to 1.2"], "Xenium-1.0.1", "integers", (".csv.gz",)),
    "1.3": Made(_BY_NAME["1.3 to 1.9"], "xenium-1.3.0.5", "bytes"),
    "1.9": Made(_BY_NAME["1.3 to 1.9"], "xenium-1.9.2.0", "text", (".parquet", ".csv.gz")),
    "2.0-early": Made(_BY_NAME["2.0, first builds"], "xenium-2.0.0.6"),
    "2.0": Made(_BY_NAME["2.0"], "xenium-2.0.0.10"),
    "3.0": Made(_BY_NAME["3.0 to 3.x"], "xenium-3.0.0.15", tables=(".parquet", ".csv.gz")),
    "4.0": Made(_BY_NAME["4.0 to 4.x"], "xenium-4.0.1.0", proteins=True),
    "ranger": Made(
        _BY_NAME["3.0 to 3.x"],
        "xenium-1.9.2.0",
        experiment={"xenium_ranger": {"run_id": "resegmented", "version": "xenium-3.1.0.5"}},
    ),
}


def made(version: str) -> Made:
    """How to write a version.

    Raises
    ------
    UsageError
        When the generator does not know it.
    """
    if version not in MADE:
        raise UsageError(f"the generator writes the versions {', '.join(MADE)}; found {version!r}")
    return MADE[version]
