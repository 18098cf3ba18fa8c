"""A training run: from projects to a checkpoint with its manifest."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stqp import files
from stqp.errors import InputError, UsageError
from stqp.locking import LOCK_NAME, FolderLock
from stqp.patches.options import CutOptions
from stqp.record import RunRecord
from stqp.training.config import CONFIG, anchored, load_settings, save_config
from stqp.training.network import architecture
from stqp.training.settings import Settings

if TYPE_CHECKING:
    from stqp.patches.cut import Progress as CutProgress
    from stqp.patches.store import PatchFile
    from stqp.training.callbacks import Progress
    from stqp.training.distributed import Place
    from stqp.training.fit import Fitted

logger = logging.getLogger(__name__)
PATCHES, CHECKPOINT, SPLIT = "patches.h5", "last.ckpt", "split.json"
WEIGHTS, MANIFEST, RECORD = "model.pth", "manifest.json", "record.json"


def train(
    settings: Settings | None,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    cut_progress: CutProgress | None = None,
) -> RunRecord | None:
    """Train a HoVer-Net from the typed nuclei of QuPath projects.

    Parameters
    ----------
    settings
        All that shapes the run: ``Settings.of([project], arch="lite", epochs=20)``. None with `resume` takes
        those that the run began with.
    out
        Folder of the run; it gets ``model.pth`` (a plain state_dict), ``manifest.json``, ``train.toml``,
        ``metrics.csv``, ``record.json``, and what `resume` needs.
    resume
        Go on with an interrupted run, or with one that ended, under a larger budget.
    progress
        Called with the fraction done and the latest losses and scores.
    cut_progress
        Called with (blocks done, blocks in all) while patches are cut.

    Returns
    -------
    RunRecord or None
        None in all processes of a distributed run but the first.

    Raises
    ------
    UsageError
        When `out` holds a run already and `resume` is not asked for, or its settings differ.
    InputError
        When the projects hold nothing to learn from, or the loss is no number.
    EnvironmentProblem
        When the device is not there, memory or disk are full.
    KeyboardInterrupt
        On Ctrl-C; the run can be resumed.
    """
    if settings is None:
        settings = saved_settings(out)
    settings = anchored(settings).resolved()
    if not settings.projects:
        raise UsageError("expected at least one QuPath project to train from, found none")
    given_patches(settings)
    from stqp.devices import pick_device
    from stqp.training.distributed import find_place, prepared_by_main
    from stqp.training.machine import check_machine

    place = find_place(settings.run.devices, settings.run.nodes)
    if not place.is_main:
        logging.getLogger("stqp").setLevel(logging.ERROR)  # the first process speaks for all
    device = pick_device(settings.run.device)
    check_machine(settings.run, place, device)
    record = RunRecord("train", {**settings.to_dict(), "out": out, "resume": resume})
    lock = None
    new = not out.exists()
    try:
        with prepared_by_main(place):
            if place.is_main:
                _refuse(out, settings, resume)
                if settings.network.init is not None and not (resume and (out / CHECKPOINT).is_file()):
                    from stqp.training.checkpoints import check_initial

                    check_initial(settings.network.init, settings.network.arch)  # before hours of cutting
                with files.disk_errors(out):
                    out.mkdir(parents=True, exist_ok=True)
                lock = FolderLock(out, creating=False, what="run")
                _prepare(out, settings, resume, record, cut_progress)
        from stqp.patches.store import PatchFile
        from stqp.training.fit import fit

        patches = PatchFile(given_patches(settings) or out / PATCHES)
        if len(patches.classes) == 1:
            record.warn(
                f"all nuclei are of one class, {patches.classes[0]}: the network learns to find them, not to type"
            )
        fitted = fit(settings, patches, out, place, device, resume=resume, progress=progress)
        if not place.is_main:
            return None
        record.results.update(_finish(settings, patches, out, place, device, fitted, record))
        record.write(out / RECORD)
    finally:
        if lock is not None:
            lock.release()
            if new and not any(out.iterdir()):
                out.rmdir()
    return record


def saved_settings(out: Path) -> Settings:
    """Settings that a run began with.

    Raises
    ------
    UsageError
        When there is no run.
    """
    if not (out / CONFIG).is_file():
        raise UsageError(f"there is no run to resume in {out}")
    return load_settings(out / CONFIG)


def given_patches(settings: Settings) -> Path | None:
    """The file of patches that a run learns from in place of projects; None where it cuts its own.

    Raises
    ------
    UsageError
        When there is more beside it, or options that only a cut has.
    """
    files_of_patches = [p for p in settings.projects if Path(p).suffix.lower() in (".h5", ".hdf5")]
    if not files_of_patches:
        return None
    if len(settings.projects) > 1:
        raise UsageError("expected one file of patches, or projects; found several; merge them by stqp patches")
    if settings.data != CutOptions():
        raise UsageError(
            f"{files_of_patches[0]} is cut and split already; options of data and split have no place beside it"
        )
    return Path(files_of_patches[0])


def _refuse(out: Path, settings: Settings, resume: bool) -> None:
    """Refuse what would overwrite something, before anything is written."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out needs a folder for the run")
    if (out / CONFIG).is_file():
        if not resume:
            raise UsageError(f"{out} holds a run already; go on with it by --resume, or choose another --out")
        changed = settings.differences(saved_settings(out).resolved())
        if changed and (out / CHECKPOINT).is_file():
            raise UsageError(f"the run in {out} cannot go on with other settings: {'; '.join(changed)}")
    elif out.is_dir() and not _was_begun(out):
        raise InputError(f"{out} is not empty and holds no run of stqp; choose another --out")
    elif resume:
        raise UsageError(f"there is no run to resume in {out}")


def _was_begun(out: Path) -> bool:
    """Whether a folder is empty but for what a run leaves that was killed while it cut patches."""
    names = {p.name for p in out.iterdir()} - {LOCK_NAME, PATCHES, SPLIT}
    return all(name.startswith(f".{PATCHES}.") for name in names)


def _prepare(out: Path, settings: Settings, resume: bool, record: RunRecord, progress: CutProgress | None) -> None:
    """Cut the patches of a run, and write down its settings."""
    if file := given_patches(settings):
        from stqp.patches.store import PatchFile

        patches = PatchFile(file)
        record.add_input(file)
        record.count("patches", len(patches))
        files.write_json(out / SPLIT, patches.about.get("split", {}))
    elif not (resume and (out / PATCHES).is_file() and (out / SPLIT).is_file()):
        from stqp.patches.cut import cut_patches

        projects = [Path(p) for p in settings.projects]
        cut = cut_patches(projects, out / PATCHES, record, settings.data, progress=progress)
        files.write_json(out / SPLIT, cut.split)
    save_config(settings, out / CONFIG)


def _finish(
    settings: Settings, patches: PatchFile, out: Path, place: Place, device: str, fitted: Fitted, record: RunRecord
) -> dict[str, Any]:
    """Write weights and manifest, and what a person is told."""
    import torch

    from stqp.training.manifest import write_manifest

    state, schedule = fitted.state, settings.schedule
    buffer = io.BytesIO()  # torch writes a file's own name into it, and the temporary one is random
    torch.save(fitted.network.state_dict(), buffer)
    files.write_bytes(out / WEIGHTS, buffer.getvalue())
    scores = state.best_scores or state.scores
    trained: dict[str, Any] = {
        "steps": state.steps, "crops": state.crops, "epochs": round(state.step / fitted.steps_per_epoch, 2),
        "minutes": round(state.seconds / 60, 2), "device": device, "processes": place.world,
        "learning_rate": schedule.lr, "batch_size": schedule.batch_size, "seed": settings.run.seed,
        "selected_by": schedule.select if state.best_file else "last",
        "selected_step": state.best_step if state.best_file else state.steps,
        "stopped_early": state.stopped_early, "initial": fitted.initial, "test": fitted.test,
        "settings": settings.to_dict(),
    }  # fmt: skip
    size = {"parameters": fitted.parameters, "gflop": round(fitted.gflop, 2)}
    write_manifest(out, settings.network.arch, patches, size, trained, scores)
    window = architecture(settings.network.arch).input_size
    record.count("parameters", f"{fitted.parameters / 1e6:.2f} million, {fitted.gflop:.1f} GFLOP a {window} px window")
    record.count("crops shown", state.crops)
    record.count("steps", state.steps)
    record.count("minutes", trained["minutes"])
    if state.best_file:
        record.count("chosen", f"step {state.best_step} of {state.steps}, by validation {schedule.select}")
    for name, value in scores.items():
        if value == value:
            record.count(f"validation {name}", round(value, 4))
    for name, value in fitted.test.items():
        if value == value:
            record.count("patches scored for testing" if name == "patches" else f"test {name}", round(value, 4))
    return {"training": trained, "validation": scores, "classes": patches.classes}
