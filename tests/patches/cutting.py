"""Cuts for the tests of patches, and what is in their files."""

import numpy as np

from stqp.patches.cut import cut_patches
from stqp.patches.options import CutOptions
from stqp.patches.store import PatchFile
from stqp.record import RunRecord


def cut(project, path, workers=1, **options):
    record = RunRecord("test", {})
    options = {"size": 64, "block": 40.0, "guard": 0.0, **options}
    projects = project if isinstance(project, list) else [project]
    made = cut_patches(projects, path, record, CutOptions(**options), workers=workers)
    return made, PatchFile(path), record


def content(path):
    patches = PatchFile(path)
    rows = [patches.read(i) for i in range(len(patches))]
    columns = [patches.side.tolist(), patches.origin.tolist(), patches.source.tolist(), patches.counts.tolist()]
    return [patches.about, columns, {name: np.stack([r[name] for r in rows]).tobytes() for name in rows[0]}]
