"""The cells of a study's table: a network trained on a variant with a seed, and what it finds on the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stqp import __version__, files
from stqp.errors import InputError, UsageError
from stqp.experiments.images import content_of, images_of, slug
from stqp.experiments.manifest import Study
from stqp.inference.targets import Selection
from stqp.locking import turn

CELL, TRAINING, TURNS = "cell.json", "train", ".turns"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes
    ----------
    variant, network : str
    seed : int
    """

    variant: str
    network: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, and of its detections in the projects of the tests."""
        return f"{slug(self.variant)}-{slug(self.network)}-seed{self.seed}"


def cells_of(study: Study) -> list[Cell]:
    """All cells, seed by seed, so that a first table stands early.

    Raises
    ------
    UsageError
        When two have the same name.
    """
    cells = [Cell(v, n, s) for s in study.seeds for n in study.networks for v in study.variants]
    names = [cell.name for cell in cells]
    if twice := {n for n in names if names.count(n) > 1}:
        raise UsageError(f"two parts of the study have the same name in files, {', '.join(sorted(twice))}; rename one")
    return cells


def cell_folder(out: Path, cell: Cell) -> Path:
    """Folder of a cell."""
    return out / "runs" / cell.name


def project_of_test(out: Path, test: str) -> Path:
    """Project in which the detections on a test stand: a copy of the truth's project, or one of its images."""
    return out / "tests" / slug(test)


def is_done(study: Study, cell: Cell, out: Path) -> bool:
    """Whether a cell has been trained, and has predicted every test."""
    path = cell_folder(out, cell) / CELL
    if not path.is_file():
        return False
    state = json.loads(path.read_text(encoding="utf-8"))
    return bool(state["trained"]) and {mark[0] for mark in state["predicted"]} >= set(study.tests)


def run_cell(
    study: Study,
    cell: Cell,
    inputs: Mapping[str, Path],
    out: Path,
    device: str = "auto",
    progress: Progress | None = None,
) -> None:
    """Train a cell, and predict the tests with it; what is finished is not done again.

    Parameters
    ----------
    study, cell
        What.
    inputs
        File of patches by variant, of `stqp.experiments.data.prepare`.
    out
        Folder of the study.
    device
        As `stqp.devices.pick_device`.
    progress
        Called with a step's name and the fraction of it that is done.

    Raises
    ------
    UsageError
        When the folder has this cell from a study that said something else.
    """
    say = progress or (lambda step, fraction: None)
    folder = cell_folder(out, cell)
    state = _begin(study, cell, folder)
    if not state["trained"]:
        _train(study, cell, inputs[cell.variant], folder, device, lambda fraction, _: say("training", fraction))
        state["trained"] = True
        files.write_json(folder / CELL, state)
    for test in study.tests:
        # other names for the truth's classes ask for other scores only
        asked = {k: v for k, v in asdict(study.tests[test]).items() if k != "relabel"}
        mark = [test, asked, content_of(study.data[asked["data"]])]
        if mark not in state["predicted"]:
            say(f"predicting {test}", 0.0)
            _predict(study, test, folder, out, device)
            state["predicted"] = [m for m in state["predicted"] if m[0] != test] + [mark]
            files.write_json(folder / CELL, state)


def _begin(study: Study, cell: Cell, folder: Path) -> dict[str, Any]:
    """What is done of a cell, which must be of the same study."""
    variant = study.variants[cell.variant]
    asked = {
        "variant": {k: v for k, v in asdict(variant).items() if k != "afterwards"},
        "network": dict(study.networks[cell.network]),
        "split": dict(study.split),
        "patches": dict(study.patches),
        "data": {name: content_of(study.data[name]) for name in variant.train},
        "stqp": __version__,
    }
    wanted = json.loads(json.dumps(asked, default=str))
    path = folder / CELL
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"of": wanted, "trained": False, "predicted": []})
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if state["of"] != wanted:
        parts = sorted(k for k in wanted if state["of"].get(k) != wanted[k])
        raise UsageError(
            f"{folder} was trained with another {' and '.join(parts)}; delete that folder to train it again, or give "
            "the study another --out"
        )
    return state


def _train(study: Study, cell: Cell, patches: Path, folder: Path, device: str, progress: Callable[..., None]) -> None:
    from stqp.training.config import CONFIG
    from stqp.training.run import train
    from stqp.training.settings import Settings

    options = {**study.networks[cell.network], "seed": cell.seed, "device": device}
    run = folder / TRAINING
    train(Settings.of([patches], **options), run, resume=(run / CONFIG).is_file(), progress=progress)


def _predict(study: Study, test: str, folder: Path, out: Path, device: str) -> None:
    from stqp.inference.model import load_predictor
    from stqp.inference.one import Settings
    from stqp.inference.run import predict_targets

    one = study.tests[test]
    data = study.data[one.data]
    run, project = folder / TRAINING, project_of_test(out, test)
    predictor = load_predictor(run, device)
    predictor.name = folder.name
    settings = Settings(mpp=None if data.format == "project" else data.mpp, tissue=False, stain=False)
    images = images_of(data, out)
    targets = [image.path for image in images if image.path is not None]
    selection = Selection()
    if data.format == "project":
        targets, selection = [project], Selection(entries=[image.name for image in images])
    with turn(out / "tests" / TURNS / slug(test), "test"):  # cells that run at the same time share its images
        _, failed = predict_targets(
            predictor, targets, settings, project=project, selection=selection, held_out=run if one.held_out else None
        )
    if failed:
        raise InputError("; ".join(failed))
