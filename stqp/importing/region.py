"""The region that an import is asked for: of a file, or as somebody drew it in QuPath."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stqp.errors import InputError
from stqp.qupath.objects import ObjectKind
from stqp.qupath.project import PROJECT_NAME, QuPathProject
from stqp.sources.regions import Region, read_region

PREFIX = "annotation:"


def find_region(source: str | Path, project: str | Path, he: str | Path) -> Region:
    """Find a region.

    Parameters
    ----------
    source
        A file as `stqp.sources.regions.read_region` reads it; or ``annotation:NAME``, the annotations of that
        name or class on the H&E in the project.
    project, he
        The project's folder and the image.

    Raises
    ------
    InputError
        When there is none.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return read_region(text)
    wanted = text.removeprefix(PREFIX).strip()
    path = Path(project)
    if not (path if path.suffix == ".qpproj" else path / PROJECT_NAME).is_file():
        raise InputError(f"the region {text!r} is looked for in the project {project}, which does not exist yet")
    image = Path(he).resolve()
    with QuPathProject.open(path) as opened:
        entries = [e for e in opened.entries if e.image_path is not None and e.image_path.resolve() == image]
        if not entries:
            raise InputError(f"the project {project} has no image {he} with an annotation {wanted!r}")
        objects = entries[0].read_objects()
    drawn = (objects.kind == ObjectKind.ANNOTATION) & (np.diff(objects.polygons.geom_offsets) > 0)
    match = drawn & ((objects.names == wanted) | (objects.classes == wanted))
    chosen = np.flatnonzero(match)
    if not len(chosen):
        raise InputError(
            f"no annotation named or classed {wanted!r} is on {he} in the project {project}; draw it there"
        )
    return Region(objects.polygons.take(chosen), False, [wanted] * len(chosen), text)
