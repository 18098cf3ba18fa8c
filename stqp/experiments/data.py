"""What each variant learns from: files of patches, cut once, split once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import InputError
from stqp.experiments.cells import project_of_test
from stqp.experiments.images import content_of, images_of, slug
from stqp.experiments.labels import relabelled
from stqp.experiments.manifest import Dataset, Study, Variant
from stqp.patches.cut import cut_patches
from stqp.patches.importing import import_patches
from stqp.patches.options import CutOptions
from stqp.record import RunRecord

SPLIT = "split.json"


def prepare(study: Study, out: Path, record: RunRecord) -> dict[str, Path]:
    """Cut the patches of each variant; what did not change is left as it is.

    What is held out for tests is chosen once, by the first cut of the images that are tested on, and holds for all
    variants: a difference between two is none of what they were tested on.

    Returns
    -------
    dict
        File of patches by variant.

    Raises
    ------
    InputError
        When a variant would learn from an image that it is tested on as a whole.
    """
    tested: dict[bool, set[Path]] = {True: set(), False: set()}
    for test in study.tests.values():
        tested[test.held_out] |= {i.path.resolve() for i in images_of(study.data[test.data], out) if i.path is not None}
    for name, test in study.tests.items():
        if study.data[test.data].format == "project":
            # a copy, so that detections do not go into the user's own
            relabelled(study.data[test.data].path, project_of_test(out, name), "", {})
    made: dict[str, Path] = {}
    for variant in study.variants.values():
        parts = []
        for name in variant.train:
            data = study.data[name]
            paths = {image.path.resolve(): image.name for image in images_of(data, out) if image.path is not None}
            if both := sorted(paths[p] for p in set(paths) & tested[False]):
                raise InputError(
                    f"{variant.name} would learn from {', '.join(both[:5])}, on which it is tested as a whole; say in "
                    "[split] what is held out and set held_out = true, or test on other images"
                )
            parts.append(_cut(study, variant, data, out, bool(set(paths) & tested[True]), record))
        made[variant.name] = _joined(study, variant, parts, out, record)
    return made


def _joined(study: Study, variant: Variant, parts: list[Path], out: Path, record: RunRecord) -> Path:
    """One file of the patches of all data sets, with the classes that are to be learnt."""
    if len(parts) == 1 and not variant.classes:
        return parts[0]
    target = out / "patches" / f"{slug(variant.name)}.h5"
    chosen = {**study.patches, **variant.patches}
    cut_patches(parts, target, record, CutOptions(classes=variant.classes, mpp=chosen.get("mpp", CutOptions.mpp)))
    return target


def _cut(study: Study, variant: Variant, data: Dataset, out: Path, shared: bool, record: RunRecord) -> Path:
    options: dict[str, Any] = {"seed" if key == "split_seed" else key: value for key, value in study.split.items()}
    again = shared and (out / SPLIT).is_file()
    if again:
        options = {key: value for key, value in options.items() if key in ("block", "guard")}
        options["split"] = f"file:{(out / SPLIT).resolve()}"
    chosen = {**study.patches, **variant.patches}
    options |= {**chosen, "entries": data.entries, "where": data.where}
    is_project = data.format == "project"
    # the labels of a set of images are those of its maps
    labels = {"labels": variant.labels, "relabel": dict(variant.relabel)} if is_project else {}
    about = {"data": content_of(data), "labels": labels, "split": {k: str(v) for k, v in study.split.items()}}
    if chosen:
        about["patches"] = chosen
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=6).hexdigest()
    target = out / "patches" / f"{slug(data.name)}-{digest}.h5"
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_project:
        project = data.path
        if any(labels.values()):
            project = out / "labels" / f"{slug(data.name)}-{digest}"
            relabelled(data.path, project, variant.labels, variant.relabel)
        cut = cut_patches([project], target, record, CutOptions(**options))
    else:
        names = data.classes or None
        whole = CutOptions(**{"split": "slide", **options})
        cut = import_patches(data.path, data.format, target, record, whole, image_mpp=data.mpp, type_names=names)
    if shared and not again:
        files.write_json(out / SPLIT, cut.split)
    return target
