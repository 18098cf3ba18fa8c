"""What is scored, and how: sources of nuclei and the options of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stqp.errors import InputError
from stqp.evaluation.nuclei import Side


class Source(Protocol):
    """Nuclei of images by their names: `MapFolder`, `PanNuke`, `NucleiTable`, `ProjectNuclei`.

    Attributes
    ----------
    name : str
        For messages.
    default_names : mapping or None
        Names for the numbers of classes that the source itself does not name.
    """

    name: str
    default_names: Mapping[int, str] | None

    def images(self) -> list[str]:
        """Names of the images."""
        ...

    def read(self, image: str) -> Side:
        """Nuclei of an image."""
        ...

    def close(self) -> None:
        """Release files."""
        ...


@dataclass(frozen=True)
class Options:
    """What shapes an evaluation.

    Attributes
    ----------
    mpp : float or None
        µm per px of images that do not say; 0.25 for maps and tables when None.
    held_out : Path or None
        A training run: only nuclei whose centres lie in its held-out boxes count.
    class_map : mapping or None
        Class names to the names that are scored, of both sides.
    type_names : mapping or None
        Names for the numbers of types in maps that name none, of both sides.
    metadata : Path or None
        A csv with the columns ``image`` and others, such as ``organ``.
    group_by : str
        Key of the metadata that groups images.
    allow_missing : bool
        Whether an image that the prediction lacks counts as one without predicted nuclei.
    block_um : float or None
        Side of the spatial blocks that are resampled; None for images where there are 5 or more, and blocks of
        250 µm otherwise.
    interval : str
        ``bca`` or ``percentile``.
    bootstrap : int
        Resamples.
    seed : int
        Of resamples and permutations.
    boundaries : bool
        Whether to measure how far boundaries lie apart.
    images : Path or None
        Folder of the H&E, for maps and tables.
    """

    mpp: float | None = None
    held_out: Path | None = None
    class_map: Mapping[str, str] | None = None
    type_names: Mapping[int, str] | None = None
    metadata: Path | None = None
    group_by: str = "organ"
    allow_missing: bool = False
    block_um: float | None = None
    interval: str = "bca"
    bootstrap: int = 1000
    seed: int = 0
    boundaries: bool = True
    images: Path | None = None


def open_source(text: str, images: Path | None = None, **project: Any) -> Source:
    """Open whatever a text names: a project (or ``PROJECT::IMAGE``), PanNuke's arrays, a table, a folder of maps.

    Parameters
    ----------
    text
        What a user wrote.
    images
        Folder of the H&E, for maps and tables.
    **project
        As `ProjectNuclei`.
    """
    from stqp.evaluation.map_files import MapFolder, PanNuke, pannuke_files
    from stqp.evaluation.pannuke_folds import PanNukeFolds
    from stqp.evaluation.projects import ProjectNuclei, is_project_text
    from stqp.evaluation.tables import NucleiTable, is_table

    path = Path(text.partition("::")[0])
    if not path.exists():
        raise InputError(f"there is nothing at {path}; expected a project, a folder of instance maps or a table")
    if is_project_text(text):
        return ProjectNuclei(text, **project)
    if len(masks := pannuke_files(path)) > 1:
        return PanNukeFolds(path)
    if masks:
        return PanNuke(masks[0])
    return NucleiTable(path, images) if is_table(path) else MapFolder(path, images)
