"""The whole chain on a small synthetic sample, for a first look and as a test of an installation."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stqp import files
from stqp.errors import InputError

logger = logging.getLogger(__name__)
MARKER = "demo.json"
Progress = Callable[[str, float], None]


@dataclass
class Demo:
    """What the demo made.

    Attributes
    ----------
    folder, project, run, picture : Path
    scores : dict
        Of the detections in the blocks that training did not see; see `stqp.evaluation`.
    seconds : dict
        Time that each step took.
    """

    folder: Path
    project: Path
    run: Path
    picture: Path
    scores: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(
    folder: Path, seed: int = 0, minutes: float = 3.0, size: int = 2048, device: str = "auto",
    progress: Progress | None = None,
) -> Demo:  # fmt: skip
    """Make a sample, import it, train on it, predict, and score the blocks that training did not see.

    Parameters
    ----------
    folder
        Where everything goes; must be empty or not exist.
    seed
        Of the sample and the training.
    minutes
        Of training.
    size
        Side of the H&E in px.
    device
        As `stqp.devices.pick_device`.
    progress
        Called with the name of the step and the fraction of it that is done.

    Returns
    -------
    Demo

    Raises
    ------
    InputError
        When the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; delete it, or give another folder: stqp demo DIR")
    demo = Demo(folder, folder / "project", folder / "run", folder / "overlay.png")
    say = progress or (lambda step, fraction: None)

    def timed(step: str, action: Callable[[], Any]) -> Any:
        logger.info("%s", step)
        started = time.monotonic()
        say(step, 0.0)
        result = action()
        say(step, 1.0)
        demo.seconds[step] = round(time.monotonic() - started, 1)
        return result

    from stqp.synthetic import make_sample

    step = "Making a sample: H&E, Xenium bundle, labels"
    sample = timed(step, lambda: make_sample(folder / "sample", seed=seed, size=(size, size)))

    def import_it() -> Any:
        from stqp.importing.xenium import import_xenium

        return import_xenium(
            sample.outs, sample.he, sample.alignment, demo.project, labels=sample.labels, class_map=sample.class_map
        )

    imported = timed("Importing it into a QuPath project", import_it)
    for line in imported.summary().splitlines():
        logger.debug("  %s", line)

    step_train = f"Training lite for {minutes:g} minutes"

    def train_it() -> Any:
        from stqp.training.run import train
        from stqp.training.settings import Settings

        settings = Settings.of(
            [demo.project], arch="lite", max_time=minutes, block=128.0, seed=seed, split_seed=seed, device=device
        )
        return train(settings, demo.run, progress=lambda fraction, _: say(step_train, fraction))

    timed(step_train, train_it)
    step_predict = "Predicting nuclei on the slide"

    def predict_it() -> Any:
        from stqp.devices import pick_device
        from stqp.inference.model import load_predictor
        from stqp.inference.one import Settings
        from stqp.inference.run import predict_targets

        predictor = load_predictor(demo.run, pick_device(device))
        record, failed = predict_targets(predictor, [demo.project], Settings(geojson=True))
        if failed:
            raise InputError("; ".join(failed))
        return record

    timed(step_predict, predict_it)

    def evaluate_it() -> dict[str, Any]:
        from stqp.evaluation.evaluate import evaluate_projects

        return evaluate_projects(str(demo.project), str(demo.project), held_out=demo.run)

    demo.scores = timed("Scoring the blocks that training did not see", evaluate_it)
    timed("Drawing an overlay", lambda: draw(demo))
    files.write_json(folder / MARKER, {"seed": seed, "seconds": demo.seconds, "scores": demo.scores})
    return demo


def draw(demo: Demo) -> None:
    """Draw a held-out block: H&E, nuclei typed from expression, nuclei that the network found."""
    import numpy as np

    from stqp.qupath.objects import ObjectKind
    from stqp.qupath.project import QuPathProject
    from stqp.report.overlay import overlay, panels, save_png
    from stqp.slides import open_slide
    from stqp.taxonomy import UNKNOWN, UNKNOWN_COLOR, VISUAL_CLASSES
    from stqp.training.manifest import read_manifest

    boxes = [b for image in read_manifest(demo.run)["split"]["validation"] for b in image["boxes"]]
    with QuPathProject.open(demo.project, "r") as project:
        entry = project.entries[0]
        objects = entry.read_objects()
        truth = objects.take(objects.kind == ObjectKind.ANNOTATION)
        found = objects.take(objects.kind == ObjectKind.DETECTION)
        # the block with the most kinds of nuclei says most
        centres = truth.polygons.centroid()

        def kinds(box: list[float]) -> int:
            x0, y0, x1, y1 = box
            inside = ((centres >= (x0, y0)) & (centres < (x1, y1))).all(axis=1)
            return len(np.unique(truth.classes[inside].astype(str))) * 10000 + int(inside.sum())

        x0, y0, x1, y1 = max(boxes, key=kinds)
        with open_slide(entry.image_path or demo.folder, entry.mpp) as slide:
            box = (x0, y0, x1, y1)
            scale = max((y1 - y0) / 480, 0.1)
            pictures = [
                overlay(slide, truth.polygons.take([]), [], box, scale),
                overlay(slide, truth.polygons, truth.classes, box, scale),
                overlay(slide, found.polygons, found.classes, box, scale),
            ]
    titles = ["H&E", "Nuclei, typed from expression", "Found by the network (never seen)"]
    colors = {**{c.name: c.color for c in VISUAL_CLASSES}, UNKNOWN: UNKNOWN_COLOR}
    save_png(demo.picture, panels(pictures, titles, colors))
