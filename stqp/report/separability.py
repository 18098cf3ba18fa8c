"""What can the images of a project tell apart: measure, learn, merge, and write a report and a taxonomy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.importing.labelling import SAMPLE_FILE
from stqp.qupath.project import QuPathProject
from stqp.record import RunRecord
from stqp.report import separability_figures as figures
from stqp.report import separability_page as pages
from stqp.report.page import png_bytes, write_page
from stqp.separability.analysis import analyse
from stqp.separability.blocks import BLOCK_UM, GUARD_UM
from stqp.separability.features import Features, measure, reading_mpp
from stqp.separability.given import read_embedding, read_predictions
from stqp.separability.groups import SlideNuclei, read_slide
from stqp.separability.merging import LEAST_AUC
from stqp.separability.result import MIN_NUCLEI, Separability, Settings
from stqp.slides import open_slide

COMMAND = "separability"
FEATURES = ("simple", "given", "both")
Progress = Callable[[int, int, str], None]


def separability(
    project: str | Path,
    entry: Sequence[str] = (),
    by: str | None = None,
    out: str | Path | None = None,
    features: str | None = None,
    embedding: str | Path | None = None,
    embedding_key: str | None = None,
    predictions: str | Path | None = None,
    predictions_run: str | None = None,
    least_auc: float = LEAST_AUC,
    across_lineages: bool = False,
    block: float = BLOCK_UM,
    guard: float = GUARD_UM,
    min_nuclei: int = MIN_NUCLEI,
    seed: int = 0,
    progress: Progress | None = None,
) -> RunRecord:
    """Measure how well the groups of a project's nuclei can be told apart in the image, and propose classes.

    Parameters
    ----------
    project
        Folder of the QuPath project, or its file; it is only read.
    entry
        Names or ids of images; all with counts when empty.
    by
        ``cluster``, ``fine``, ``class``, or a column of the cells' ``obs``; clusters of one image and fine types of
        several when None.
    out
        Folder for what is written; without, ``separability`` beside the counts of the image, or in the project's
        folder ``stqp`` for several images.
    features : {"simple", "given", "both"}
        The simple features of the H&E, what is given by `embedding` and `predictions`, or both; both where something
        is given when None.
    embedding, embedding_key
        See `stqp.separability.given.read_embedding`.
    predictions, predictions_run
        Out-of-fold; see `stqp.separability.given.read_predictions`.
    least_auc, across_lineages, block, guard, min_nuclei, seed
        See `stqp.separability.analysis.Settings`.
    progress
        Called with (steps done, steps in all, name of the next).

    Returns
    -------
    RunRecord
        ``results`` has the files written, the proposed classes and the statement on all pairs.

    Raises
    ------
    InputError
        When nothing was imported or labelled, an image or file is missing or does not fit, or fewer than two groups
        can be judged; nothing is written then.
    UsageError
        When arguments do not go together.
    """
    given = {name: value for name, value in locals().items() if name != "progress"}
    record = RunRecord(COMMAND, {**given, "entry": [*entry]})
    settings = Settings(block, guard, least_auc, across_lineages, min_nuclei, seed)
    settings.check()
    features = _what(features, embedding is not None or predictions is not None)
    tell = progress or (lambda done, total, name: None)
    tell(0, 1, "reading nuclei")
    slides, by, folder = _read(project, entry, by, out, record)
    parts: list[list[Features]] = []
    if features != "given":
        parts.append(_measured(slides, record, progress))
    if embedding is not None:
        tell(0, 1, "reading the embedding")
        record.add_input(_existing(Path(embedding)))
        parts.append(read_embedding(Path(embedding), embedding_key, slides, seed))
    if predictions is not None:
        tell(0, 1, "reading predictions")
        record.add_input(_existing(Path(predictions)))
        parts.append(read_predictions(Path(predictions), predictions_run, slides))
    joined = [functools.reduce(Features.beside, of_slide) for of_slide in zip(*parts, strict=True)]
    for one in joined:
        for reason, number in one.counts.items():
            if number:
                record.count(reason, int(record.counts.get(reason, 0)) + number)
    found = analyse(slides, joined, by, settings, record, progress, only_known=features == "given")
    tell(0, 1, "drawing")
    _write(found, slides, joined, by, folder, record)
    return record


def _what(features: str | None, given: bool) -> str:
    if features is not None and features not in FEATURES:
        raise UsageError(f"expected --features {', '.join(FEATURES)}, found {features!r}")
    if features in ("given", "both") and not given:
        raise UsageError(f"--features {features} needs --embedding or --predictions")
    return features or ("both" if given else "simple")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    return path


def _read(
    project: str | Path, entry: Sequence[str], by: str | None, out: str | Path | None, record: RunRecord
) -> tuple[list[SlideNuclei], str, Path]:
    with QuPathProject.open(project, "r") as qupath:
        known = {text for e in qupath.entries for text in (e.name, str(e.id))}
        for name in entry:
            if name not in known:
                names = ", ".join(e.name for e in qupath.entries) or "none"
                raise UsageError(f"{qupath.folder} has no image {name!r}; it has {names}")
        chosen = [e for e in qupath.entries if not entry or e.name in entry or str(e.id) in entry]
        counted = [e for e in chosen if (e.stqp_folder / SAMPLE_FILE).is_file()]
        record.skip("images without counts", len(chosen) - len(counted))
        if not counted:
            raise InputError(f"no image of {qupath.folder} has counts beside it; import a sample first")
        if by is None:
            by = "cluster" if len(counted) == 1 else "fine"
        if by == "cluster" and len(counted) > 1:
            raise UsageError(
                f"each of the {len(counted)} images has clusters of its own; name one by --entry, or give --by fine"
            )
        slides = [read_slide(e, by, record) for e in counted]
        one = counted[0].stqp_folder if len(counted) == 1 else qupath.folder / "stqp"
        return slides, by, Path(out) if out is not None else one / "separability"


def _measured(slides: list[SlideNuclei], record: RunRecord, progress: Progress | None) -> list[Features]:
    work = reading_mpp(*(s.mpp for s in slides))
    record.count("µm per pixel at which the slides were read", work)
    result = []
    for number, one in enumerate(slides):
        record.add_input(one.image)
        name = "features of the H&E" if len(slides) == 1 else f"features, slide {number + 1} of {len(slides)}"

        def step(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(done, total, name)

        step(0, 1)
        with open_slide(one.image, one.mpp) as slide:
            result.append(measure(slide, one.polygons, one.mpp, one.coverage, work, step))
    return result


def _write(
    found: Separability,
    slides: list[SlideNuclei],
    features: list[Features],
    by: str,
    folder: Path,
    record: RunRecord,
) -> None:
    paths = figures.file_names(folder)
    heat_map = figures.heat_map(found)
    sheet = figures.example_sheet(found, slides, figures.side_um(found, features), found.settings.seed)
    names = ", ".join(s.name for s in slides)
    source = _source(features[0].names)
    content = pages.to_json(found)
    record.results.update(
        by=by, out=str(folder), files={k: str(p) for k, p in paths.items()}, statement=content["statement"],
        notes=found.notes, classes=content["proposed"]["classes"],
    )  # fmt: skip
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    found.taxonomy.write(paths["taxonomy"])
    files.write_bytes(paths["pairs"], pages.pairs_csv(found).encode())
    files.write_bytes(paths["class_map"], pages.class_map_csv(found).encode())
    files.write_bytes(paths["heat_map"], png_bytes(heat_map))
    files.write_bytes(paths["examples"], png_bytes(sheet))
    parts = pages.parts(found, names, by, source, record.skipped, heat_map, sheet)
    write_page(paths["report"], "What can an image tell apart?", *parts)
    images: list[dict[str, Any]] = [{"name": s.name, "image": str(s.image), "mpp": s.mpp} for s in slides]
    with contextlib.suppress(KeyError):
        del record.results["files"]["json"]  # the record in it names the others
    files.write_json(
        paths["json"],
        {"by": by, "images": images, "features": list(features[0].names), **content, "record": record.to_dict()},
    )
    record.results["files"]["json"] = str(paths["json"])


def _source(names: tuple[str, ...]) -> str:
    given = {
        "of an embedding": sum(n.startswith("embedding ") for n in names),
        "of predictions": sum(n.startswith(("prediction ", "Probability: ")) for n in names),
    }
    simple = len(names) - sum(given.values())
    listed = [f"{simple} features of the H&E"] if simple else []
    return ", ".join(listed + [f"{number} columns {what}" for what, number in given.items() if number])
