"""The scores of a study: each variant's on each test with its interval, and the paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stqp.errors import InputError
from stqp.evaluation import baselines
from stqp.evaluation.counts import Counts
from stqp.evaluation.evaluate import evaluate
from stqp.evaluation.nuclei import Side
from stqp.evaluation.options import Options, Source
from stqp.evaluation.paired import compare
from stqp.evaluation.summary import samples_of
from stqp.evaluation.tables import object_probability
from stqp.evaluation.uncertainty import FEW_IMAGES, Sample, intervals
from stqp.experiments.cells import TRAINING, Cell, cell_folder, is_done, project_of_test
from stqp.experiments.images import images_of, open_truth
from stqp.experiments.labels import renamed
from stqp.experiments.manifest import Study
from stqp.inference.writing import source_of
from stqp.patches.options import CutOptions
from stqp.qupath.ownership import owned
from stqp.qupath.project import QuPathProject
from stqp.taxonomy import UNKNOWN

RESAMPLES = 1000


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    test, variant, network : str
        Of a baseline the network is empty.
    seeds : int
        Trainings that are added up.
    scores : dict
        By name: ``value`` (pooled over the nuclei of all images and seeds), ``interval`` (95 %, over images or
        blocks), ``spread`` (standard deviation over the seeds), ``seeds`` (value of each).
    per_class : dict
        By class: F_c, type-F1, numbers.
    """

    test: str
    variant: str
    network: str
    seeds: int
    scores: Mapping[str, Mapping[str, Any]]
    per_class: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Difference:
    """Second variant minus first, on the same images, of one network.

    Attributes
    ----------
    test, first, second, network : str
    scores : dict
        By name: ``difference``, ``interval``, ``p``.
    """

    test: str
    first: str
    second: str
    network: str
    scores: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Scores:
    """All scores of a study.

    Attributes
    ----------
    rows, differences
    units : dict
        By test: what was resampled, and how many.
    missing : list of Cell
        Cells that are not done.
    """

    rows: list[Row]
    differences: list[Difference]
    units: Mapping[str, str]
    missing: list[Cell]


class Renamed:
    """A source of nuclei whose classes are given other names.

    Parameters
    ----------
    source
        The nuclei.
    names
        Class to class; see `labels.renamed`.
    """

    def __init__(self, source: Source, names: Mapping[str, str], only: Sequence[str] = ()):
        self.name, self._source, self._renaming, self._only = source.name, source, names, set(only)
        self.default_names: Mapping[int, str] | None = None

    def images(self) -> list[str]:
        """Names of the images."""
        return [name for name in self._source.images() if not self._only or name in self._only]

    def close(self) -> None:
        """Close the nuclei."""
        self._source.close()

    def read(self, image: str) -> Side:
        """Nuclei of an image."""
        if self.default_names is not None:
            self._source.default_names = self.default_names
        side = self._source.read(image)
        return replace(side, classes=renamed(side.classes, self._renaming)) if self._renaming else side


class CellNuclei:
    """What a cell found on the images of a test; nothing where it found nothing.

    Parameters
    ----------
    project
        Of the test.
    cell
        The cell.
    mpp
        µm per px of images that do not say.
    """

    def __init__(self, project: Path, cell: Cell, mpp: float):
        self.name = cell.name
        self.default_names: Mapping[int, str] | None = None
        self._mpp, self._project = mpp, QuPathProject.open(project, "r")
        self._entries = {entry.name: entry for entry in self._project.entries}

    def images(self) -> list[str]:
        """Names of the images."""
        return [*self._entries]

    def close(self) -> None:
        """Close the project."""
        self._project.close()

    def read(self, image: str) -> Side:
        """Nuclei that the cell found."""
        entry = self._entries[image]
        objects = entry.read_objects()
        objects = objects.take(owned(objects, source_of(self.name)))
        classes = np.array([*(UNKNOWN if c is None else c for c in objects.classes.tolist()), None], object)[:-1]
        probability = object_probability(objects.measurements, objects.probability, classes)
        return Side(
            f"{self.name} on {image}",
            classes,
            polygons=objects.polygons,
            probability=probability,
            mpp=entry.mpp or self._mpp,
            size=entry.size,
        )


def score(study: Study, cells: Sequence[Cell], out: Path, seed: int = 0) -> Scores:
    """Score what is done of a study.

    Parameters
    ----------
    study
        The study.
    cells
        Its cells.
    out
        Its folder.
    seed
        Of the resamples.
    """
    rows: list[Row] = []
    differences: list[Difference] = []
    units: dict[str, str] = {}
    done = [cell for cell in cells if is_done(study, cell, out)]
    if not done:
        return Scores([], [], {}, [*cells])
    for test in study.tests:
        samples, classes, simple = _samples(study, test, done, out, seed)
        first = next(iter(samples.values()))
        units[test] = f"{len(first)} {first.unit}"
        arms: dict[tuple[str, str], list[Sample]] = {}
        for cell in done:
            arms.setdefault((cell.variant, cell.network), []).append(samples[cell.name])
        arms |= {(name, ""): [samples[name]] for name in simple}
        rows += [_row(study, test, arm, each, classes, seed) for arm, each in arms.items()]
        for one, two in study.compare:
            for network in study.networks:
                pair = arms.get((one, network)), arms.get((two, network))
                if pair[0] and pair[1]:
                    n = min(map(len, pair))  # type: ignore[arg-type]
                    found = compare(_added(pair[0][:n]), _added(pair[1][:n]), classes, RESAMPLES, seed)
                    chosen = {s: found["pooled"][s] for s in study.scores if s in found["pooled"]}
                    differences.append(Difference(test, one, two, network, chosen))
    return Scores(rows, differences, units, [c for c in cells if c not in done])


def _samples(
    study: Study, test: str, cells: Sequence[Cell], out: Path, seed: int
) -> tuple[dict[str, Sample], list[str], list[str]]:
    """What is resampled by cell and baseline, the classes, and the names of the baselines."""
    one = study.tests[test]
    data = study.data[one.data]
    held = cell_folder(out, cells[0]) / TRAINING if one.held_out else None
    mpp = None if data.format == "project" else data.mpp
    chosen = [image.name for image in images_of(data, out)]
    few = one.held_out and len(chosen) < FEW_IMAGES
    block = float(study.split.get("block", CutOptions.block)) if few else None  # what was held out, or not, as a whole
    options = Options(mpp=mpp, held_out=held, block_um=block, bootstrap=0, seed=seed, boundaries=False)
    with ExitStack() as stack:
        project = project_of_test(out, test)
        truth = Renamed(stack.enter_context(open_truth(data)), one.relabel, chosen)
        found: dict[str, Source] = {}
        for cell in cells:
            mine = stack.enter_context(closing(CellNuclei(project, cell, data.mpp)))
            found[cell.name] = Renamed(mine, study.variants[cell.variant].afterwards)
        if study.baselines:
            found[baselines.WATERSHED] = baselines.watershed_source(truth, mpp)
        evaluation = evaluate(truth, found, options)
        if not evaluation.images:
            raise InputError(f"the test {test} has no true nuclei")
        simple = [baselines.WATERSHED] if study.baselines else []
        if study.baselines:
            simple += baselines.add_typing_baselines(evaluation)
        return samples_of(evaluation), evaluation.classes, simple


def _added(samples: Sequence[Sample]) -> Sample:
    """Counts of several trainings on the same units, added up."""
    total = samples[0].units
    for sample in samples[1:]:
        total = total + sample.units
    return replace(samples[0], units=total)


def _row(
    study: Study, test: str, arm: tuple[str, str], samples: Sequence[Sample], classes: list[str], seed: int
) -> Row:
    joined = _added(samples)
    pooled = joined.units.pool()
    found = intervals(joined, classes, RESAMPLES, seed) if len(joined) > 1 else {"pooled": {}}
    each = [{k: float(v) for k, v in s.units.pool().measures().items()} for s in samples]
    scores = {}
    for name in study.scores:
        values = [e[name] for e in each]
        scores[name] = {
            "value": float(pooled.measures()[name]),
            "interval": found["pooled"].get(name),
            "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "seeds": values,
        }
    return Row(test, arm[0], arm[1], len(samples), scores, _per_class(pooled, classes))


def _per_class(pooled: Counts, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    measures = pooled.class_measures()
    keys = ("f_c", "type_f1", "precision", "recall")
    return {
        name: {**{k: float(measures[k][i]) for k in keys}, "n_true": float(pooled.n_true[i + 1])}
        for i, name in enumerate(classes)
        if pooled.n_true[i + 1]
    }
