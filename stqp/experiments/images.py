"""The images of a data set, whatever it is kept as."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import InputError
from stqp.evaluation.options import Source, open_source
from stqp.evaluation.pannuke_folds import PanNukeFolds
from stqp.experiments.manifest import Dataset
from stqp.patches.options import matches
from stqp.qupath.project import QuPathProject


@dataclass(frozen=True)
class Image:
    """An image of a data set.

    Attributes
    ----------
    name : str
    path : Path or None
        None where a project's image is not found.
    about : dict
        Its metadata.
    """

    name: str
    path: Path | None
    about: Mapping[str, str] = field(default_factory=dict)


def images_of(data: Dataset, out: Path) -> list[Image]:
    """List the images of a data set that are meant.

    Parameters
    ----------
    data
        The set.
    out
        Folder of the study, where pictures go that are in no file of their own (PanNuke's).

    Raises
    ------
    InputError
        When none is meant, or one has no picture.
    """
    found = _of_project(data) if data.format == "project" else _of_maps(data, out)
    if not found:
        wanted = " and ".join([*data.entries, *data.where]) or "any image"
        raise InputError(f"the data set {data.name} ({data.path}) has no image that is {wanted}")
    return found


def _wanted(data: Dataset, name: str, about: Mapping[str, str]) -> bool:
    return (not data.entries or name in data.entries) and matches(data.where, {**about, "name": name})


def _of_project(data: Dataset) -> list[Image]:
    with QuPathProject.open(data.path, "r") as project:
        every = [Image(e.name, e.image_path, dict(e.metadata)) for e in project.entries]
    return [image for image in every if _wanted(data, image.name, image.about)]


def _of_maps(data: Dataset, out: Path) -> list[Image]:
    found = []
    with open_truth(data) as source:
        for name in source.images():
            if data.entries and name not in data.entries:
                continue
            if isinstance(source, PanNukeFolds) and not _wanted(data, name, source.about(name)):
                continue  # thousands of images in few files, too many to look at all
            side = source.read(name)
            if not _wanted(data, name, side.about):
                continue
            path = side.image
            if path is None and side.pixels is not None:
                path = out / "images" / slug(data.name) / f"{slug(name)}.png"
                if not path.is_file():
                    from PIL import Image as Picture

                    with files.replacing(path) as temporary:
                        Picture.fromarray(side.pixels).save(temporary, format="PNG")
            if path is None:
                raise InputError(f"the image {name} of {data.path} has a map and no picture beside it")
            found.append(Image(name, path, dict(side.about)))
    return found


@contextmanager
def open_truth(data: Dataset) -> Iterator[Source]:
    """Open the true nuclei of a data set."""
    source: Source
    if data.format == "pannuke":
        source = PanNukeFolds(data.path)  # the same names and metadata as those of its patches
    else:
        about: dict[str, Any] = {"mpp": data.mpp} if data.format == "project" else {}
        source = open_source(str(data.path), **about)
    if data.classes:
        source.default_names = dict(data.classes)
    with closing(source):
        yield source


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.").lower() or "x"


def content_of(data: Dataset) -> dict[str, Any]:
    """Of a data set: where it is, and sizes and times of its files, in JSON's types."""
    digest = hashlib.blake2b(digest_size=16)
    root = data.path.parent if data.path.suffix == ".qpproj" else data.path
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        # of a project, what holds the labels: other files change when it is looked at
        if data.format != "project" or path.suffix in (".qpproj", ".qpdata", ".h5ad"):
            stat = path.stat()
            digest.update(f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    about = {k: v for k, v in asdict(data).items() if k not in ("organ", "name")}
    plain = {**about, "path": str(data.path), "files": digest.hexdigest()}
    return json.loads(json.dumps(plain, default=str))
