"""What shapes a file of patches: which data, which labels, which pixels, which side of the split."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stqp.errors import UsageError

OBJECT_KINDS = ("auto", "annotations", "detections", "cells")
WEIGHTS = ("confidence", "alignment", "stain")
"""What can weight the type loss of a nucleus; joined by ``+``, each takes its part."""
SPLITS = ("block", "slide", "metadata:KEY", "file:PATH")


def _option(default: Any, section: str) -> Any:
    return field(default=default, metadata={"section": section})


@dataclass(frozen=True)
class CutOptions:
    """Options of `stqp.patches.cut.cut_patches`; each field's metadata names its ``section`` of ``train.toml``.

    Attributes
    ----------
    entries : tuple of str
        Names of the images to use; all with nuclei when empty.
    where : tuple of str
        ``KEY=VALUE`` of the images' metadata (or ``name``, ``project``), ``*`` in a value stands for anything. Of
        one key any value will do, of several keys each must.
    classes : tuple of str
        Class names in the order of their numbers; by default those that the nuclei have. Nuclei of other
        classes count as Unknown.
    objects : {"auto", "annotations", "detections", "cells"}
        Which objects are nuclei, see `stqp.patches.nuclei.read_nuclei`.
    predictions : bool
        Whether nuclei that stqp predicted count as nuclei.
    min_confidence : float or None
        Nuclei whose ``Label confidence`` is lower are Unknown.
    min_stain : float or None
        Nuclei with a lower stain contrast are masked out of every loss; see `stqp.alignment.quality`.
    max_misalignment : float or None
        Nuclei that lie farther from their best place on the stain, in µm, are masked, with as much around them.
    weight_by : str
        ``none``, or what weights the type loss: ``confidence``, ``alignment``, ``stain``, or some joined by ``+``.
    size : int
        Side of a patch in px; smaller where blocks are.
    mpp : float
        µm per px of the patches.
    split : str
        ``block`` (spatial blocks), ``slide``, ``metadata:KEY`` (e.g. patient), or ``file:PATH`` of an earlier
        run's ``split.json``.
    block : float
        Side of a spatial block in µm; a patch never leaves its block.
    guard : float
        µm next to a held-out block that the other side leaves out.
    validation, test : float
        Fraction that is held out: to choose by, and never to be looked at in training.
    holdout : tuple of str
        ``KEY=VALUE`` of images that are all for testing.
    validate_on : tuple of str
        ``KEY=VALUE`` of images that are all for validation; no other is then.
    seed : int
        Of the choice of what is held out.
    """

    entries: tuple[str, ...] = _option((), "data")
    where: tuple[str, ...] = _option((), "data")
    classes: tuple[str, ...] = _option((), "data")
    objects: str = _option("auto", "data")
    predictions: bool = _option(False, "data")
    min_confidence: float | None = _option(None, "data")
    min_stain: float | None = _option(None, "data")
    max_misalignment: float | None = _option(None, "data")
    weight_by: str = _option("none", "data")
    size: int = _option(512, "data")
    mpp: float = _option(0.25, "data")
    split: str = _option("block", "split")
    block: float = _option(256.0, "split")
    guard: float = _option(8.0, "split")
    validation: float = _option(0.2, "split")
    test: float = _option(0.0, "split")
    holdout: tuple[str, ...] = _option((), "split")
    validate_on: tuple[str, ...] = _option((), "split")
    seed: int = _option(0, "split")

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before any work."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type.startswith("tuple") and not isinstance(value, tuple):
                if isinstance(value, str):
                    raise UsageError(f"expected a list of texts for {one.name}, found the text {value!r}")
                object.__setattr__(self, one.name, tuple(value))
        if self.objects not in OBJECT_KINDS:
            raise UsageError(
                f"there are no objects of the kind {self.objects!r}; choose one of {', '.join(OBJECT_KINDS)}"
            )
        if unknown := set(self.weights) - set(WEIGHTS):
            raise UsageError(
                f"nuclei cannot be weighted by {', '.join(sorted(unknown))}; choose none, or of {', '.join(WEIGHTS)}"
            )
        _check_range("min_confidence", self.min_confidence, 0, 1)
        _check_range("max_misalignment", self.max_misalignment, 0, 1000)
        _check_range("mpp", self.mpp, 0.01, 100)
        _check_range("block", self.block, 1, 1e9)
        _check_range("guard", self.guard, 0, self.block / 3)
        _check_range("validation", self.validation, 0, 0.9)
        _check_range("test", self.test, 0, 0.9)
        if self.validation + self.test > 0.9:
            raise UsageError(
                f"{self.validation:g} for validation and {self.test:g} for testing leave too little to learn from"
            )
        if self.size < 16 or self.size % 16:
            raise UsageError(f"expected a size of patches that 16 divides, found {self.size}")
        if len(set(self.classes)) < len(self.classes):
            raise UsageError(f"a class is named twice: {', '.join(self.classes)}")
        for text in (*self.where, *self.holdout, *self.validate_on):
            parse_filter(text)
        if self.split not in ("block", "slide"):
            kind, _, value = self.split.partition(":")
            if kind not in ("metadata", "file") or not value:
                raise UsageError(f"there is no split {self.split!r}; choose one of {', '.join(SPLITS)}")

    @property
    def weights(self) -> tuple[str, ...]:
        """What weights the type loss."""
        return () if self.weight_by == "none" else tuple(self.weight_by.split("+"))

    @property
    def split_file(self) -> Path | None:
        """The file of a split to use again."""
        return Path(self.split.removeprefix("file:")) if self.split.startswith("file:") else None

    @property
    def split_key(self) -> str | None:
        """The metadata that the split is by."""
        return self.split.removeprefix("metadata:") if self.split.startswith("metadata:") else None

    @classmethod
    def section(cls, name: str) -> list[str]:
        """Names of the options of a section, ``data`` or ``split``."""
        return [f.name for f in fields(cls) if f.metadata["section"] == name]

    def to_dict(self) -> dict[str, Any]:
        """Options by name, in JSON's types."""
        return {k: [*v] if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise UsageError(f"expected a {name.replace('_', ' ')} from {low:g} to {high:g}, found {value:g}")


def parse_filter(text: str) -> tuple[str, str]:
    """Key and value of ``KEY=VALUE``.

    Raises
    ------
    UsageError
        When it is none.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"expected KEY=VALUE, such as organ=colon, found {text!r}")
    return key.strip(), value.strip()


def matches(filters: Sequence[str], about: Mapping[str, str]) -> bool:
    """Whether an image has what the filters ask for: of each key one of its values; case does not count."""
    wanted: dict[str, list[str]] = {}
    for key, value in map(parse_filter, filters):
        wanted.setdefault(key, []).append(value.lower())
    return all(
        key in about and any(fnmatch.fnmatchcase(about[key].lower(), value) for value in values)
        for key, values in wanted.items()
    )
