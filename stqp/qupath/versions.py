"""What differs between QuPath's versions, in one place; others ask, and never compare versions.

Facts from QuPath's source at the tags v0.3.2 to v0.7.0 and from files that those versions wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stqp.errors import UsageError

_FORM = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:-?(?:rc|m)(\d+))?", re.IGNORECASE)
_BUILDERS = {
    (0, 0): ("uri", "rotated", "channels", "color", "affine", "sparse", "cropped", "pyramidize", "swapRedBlue"),
    (0, 3): ("color_deconvolved",),
    (0, 6): ("normalized", "typeConvert", "sliced", "z_projected", "z_concatenated"),
    (0, 7): ("flipped",),
}
_OLDEST_WRITTEN = (0, 4)


@dataclass(frozen=True)
class QuPathVersion:
    """A version of QuPath, asked for what it does.

    Attributes
    ----------
    text : str
        As a project file has it, e.g. ``0.5.1`` or ``0.6.0-rc1``.
    number : (int, int) or None
        What decides, e.g. (0, 6); None for a version that does not say, as that of an unreleased build, which
        is taken to be the newest.
    """

    text: str
    number: tuple[int, int] | None

    def __str__(self) -> str:
        """As a project file has it."""
        return self.text

    @classmethod
    def parse(cls, text: object) -> QuPathVersion:
        """Read the version of a project file, whatever it is.

        Parameters
        ----------
        text
            E.g. ``0.5.1``, ``v0.6.0-rc1``, ``0.7.0-SNAPSHOT``; None when the project has none, as before 0.2.
        """
        if text is None:
            return cls("", (0, 1))
        found = _FORM.match(str(text).strip())
        return cls(str(text), (int(found[1]), int(found[2])) if found else None)

    @classmethod
    def to_write(cls, text: str | QuPathVersion | None) -> QuPathVersion:
        """Check a version that a new project is to be written for; 0.5.1, which 0.4 to 0.7 open, when None.

        Raises
        ------
        UsageError
            When it is no version, or one older than stqp writes for.
        """
        if text is None:
            return DEFAULT
        version = cls.parse(str(text))
        if version.number is None or version.number < _OLDEST_WRITTEN:
            oldest = ".".join(str(n) for n in _OLDEST_WRITTEN)
            raise UsageError(f"{str(text)!r} is no version of QuPath from {oldest} on; give one like {DEFAULT}")
        return version

    def _from(self, *number: int) -> bool:
        return self.number is None or self.number >= number

    @property
    def keeps_tags(self) -> bool:
        """Whether it keeps the tags of images (from 0.6.0-rc4); others drop them when they save."""
        return self._from(0, 6)

    @property
    def keeps_project_metadata(self) -> bool:
        """Whether it has ``data/metadata.json``, the metadata of the whole project."""
        return self._from(0, 6)

    @property
    def builder_types(self) -> frozenset[str]:
        """The ``builderType`` of images that it knows; it loads no project that has another."""
        return frozenset(name for since, names in _BUILDERS.items() if self._from(*since) for name in names)

    def unknown_builder(self, builder: Any) -> str | None:
        """First ``builderType`` within a server builder that it does not know, None when it knows all."""
        return next((t for t in _types(builder) if t not in self.builder_types), None)

    def new_entry_keys(self) -> dict[str, Any]:
        """Keys that an image of a new entry has, besides those of all versions."""
        return {"tags": []} if self.keeps_tags else {}

    def server_json(self, builder: Mapping[str, Any]) -> dict[str, Any]:
        """Make the content of an entry's ``server.json`` from its server builder; no version reads it."""
        if self._from(0, 6):
            return dict(builder)
        if self._from(0, 5):
            return {"builder": dict(builder), "metadata": builder.get("metadata")}
        return {key: value for key, value in builder.items() if key != "builderType"}

    @property
    def server_json_indent(self) -> int | None:
        """Spaces by which it indents ``server.json``, None for one line."""
        return 2 if self._from(0, 6) else None

    def head(self, server_builder: Mapping[str, Any]) -> dict[str, Any]:
        """Make the JSON at the head of a new ``data.qpdata``."""
        return {"dataVersion": 3, "qupathVersion": self.text, "server": dict(server_builder)}

    @property
    def geojson_step(self) -> float | None:
        """Pixels to which it rounds the coordinates of GeoJSON and of WKB shapes, None when it does not."""
        return 0.01 if self._from(0, 6) else None

    @property
    def takes_geometry_collections(self) -> bool:
        """Whether it reads GeoJSON with a GeometryCollection; others refuse the whole file."""
        return not self._from(0, 6)

    @property
    def takes_invalid_polygons(self) -> bool:
        """Whether it reads GeoJSON with a polygon that crosses itself; others refuse the whole file."""
        return not self._from(0, 6)

    @property
    def keeps_metadata_of_detections(self) -> bool:
        """Whether metadata of detections in GeoJSON arrive; in data.qpdata they do in every version."""
        return self._from(0, 6)


def _types(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        if "builderType" in content:
            yield str(content["builderType"])
        for key, value in content.items():
            if key != "metadata":
                yield from _types(value)
    elif isinstance(content, list):
        for value in content:
            yield from _types(value)


DEFAULT = QuPathVersion.parse("0.5.1")
