"""A training run: from projects to a checkpoint with its manifest."""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stqp import files
from stqp.errors import EnvironmentProblem, InputError, UsageError
from stqp.locking import LOCK_NAME, FolderLock
from stqp.record import RunRecord
from stqp.training.network import MPP, architecture, build_network, cost, initialize

if TYPE_CHECKING:
    from stqp.training.callbacks import Progress
    from stqp.training.module import Budget

logger = logging.getLogger(__name__)
SETTINGS, PATCHES, CHECKPOINT, METRICS = "settings.json", "patches.h5", "last.ckpt", "metrics.csv"
WEIGHTS, MANIFEST, RECORD = "model.pth", "manifest.json", "record.json"


@dataclass(frozen=True)
class Settings:
    """What shapes the result of a run; a resumed run must have the same."""

    arch: str = "fast"
    entries: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    objects: str = "auto"
    block: float = 256.0
    validation: float = 0.2
    batch_size: int = 8
    lr: float | None = None
    seed: int = 0


def train(
    projects: Sequence[Path],
    out: Path,
    *,
    arch: str = "fast",
    entries: Sequence[str] = (),
    classes: Sequence[str] = (),
    objects: str = "auto",
    epochs: int | None = None,
    max_steps: int | None = None,
    max_time: float | None = None,
    block: float = 256.0,
    validation: float = 0.2,
    batch_size: int = 8,
    lr: float | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    progress: "Progress | None" = None,
    cut_progress: Any = None,
) -> RunRecord:
    """Train a HoVer-Net from the typed nuclei of QuPath projects.

    Parameters
    ----------
    projects
        QuPath projects with typed nuclei.
    out
        Folder of the run; it gets ``model.pth`` (a plain state_dict), ``manifest.json``,
        ``metrics.csv``, ``record.json``, and what `resume` needs.
    arch
        ``fast`` or ``original`` (TIAToolbox's HoVerNet) or ``lite`` (learns on a CPU).
    entries, classes, objects, block, validation
        See `stqp.patches.cut.cut_patches`.
    epochs, max_steps, max_time
        The budget, of which the first limit reached ends the training: passes over the patches,
        optimiser steps, minutes. 50 epochs when none is given.
    batch_size
        Crops a step.
    lr
        Highest learning rate; the architecture's default when None.
    seed
        Of weights, split and augmentation.
    device
        ``auto`` (CUDA, then MPS, then CPU), ``cuda``, ``mps`` or ``cpu``.
    workers
        Processes that prepare crops; chosen by the machine when None, 0 for none.
    resume
        Go on with an interrupted run, or with one that ended, under a larger budget.
    progress
        Called with the fraction done and the latest losses and scores.
    cut_progress
        Called with (blocks done, blocks in all) while patches are cut.

    Returns
    -------
    RunRecord

    Raises
    ------
    UsageError
        When `out` holds a run already and `resume` is not asked for, or its settings differ.
    InputError
        When the projects hold nothing to learn from.
    EnvironmentProblem
        When the device is not there.
    KeyboardInterrupt
        On Ctrl-C; the run can be resumed.
    """
    settings = Settings(arch, tuple(entries), tuple(classes), objects, block, validation, batch_size, lr, seed)
    architecture(arch)
    record = RunRecord(
        "train",
        {**asdict(settings), "projects": [*projects], "out": out, "epochs": epochs, "max_steps": max_steps,
         "max_time": max_time, "device": device, "resume": resume},
    )  # fmt: skip
    _prepare(out, settings, resume)
    from stqp.devices import pick_device
    from stqp.patches.store import PatchFile
    from stqp.training.module import Budget

    chosen = pick_device(device)
    if epochs is None and max_steps is None and max_time is None:
        epochs = 50
    new = not out.exists()
    with files.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out, creating=False, what="run")
    try:
        split_file = out / "split.json"
        if not (resume and (out / PATCHES).is_file() and split_file.is_file()):
            from stqp.patches.cut import cut_patches
            from stqp.patches.options import CutOptions

            options = CutOptions(
                entries=tuple(entries), classes=tuple(classes), objects=objects, mpp=MPP,
                size=512 if arch != "original" else 560, block=block, validation=validation, seed=seed,
            )  # fmt: skip
            cut = cut_patches(projects, out / PATCHES, record, options, progress=cut_progress)
            files.write_json(split_file, cut.split)
        files.write_json(out / SETTINGS, {**asdict(settings), "projects": [str(p) for p in projects]})
        patches = PatchFile(out / PATCHES)
        budget = Budget(epochs, max_steps, max_time)
        record.results.update(_fit(patches, out, settings, budget, chosen, workers, resume, progress, record))
        record.write(out / RECORD)
    finally:
        lock.release()
        if new and not any(out.iterdir()):
            out.rmdir()
    return record


def _prepare(out: Path, settings: Settings, resume: bool) -> None:
    """Refuse what would overwrite something, before anything is written."""
    import json

    known = out / SETTINGS
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out needs a folder for the run")
    if known.is_file():
        if not resume:
            raise UsageError(f"{out} holds a run already; go on with it by --resume, or choose another --out")
        earlier = json.loads(known.read_text(encoding="utf-8"))
        changed = [
            f"{k} was {earlier.get(k)} and is {v}"
            for k, v in json.loads(json.dumps(asdict(settings))).items()
            if earlier.get(k) != v
        ]
        if changed:
            raise UsageError(f"the run in {out} cannot go on with other settings: {'; '.join(changed)}")
    elif out.is_dir() and not _was_begun(out):
        raise InputError(f"{out} is not empty and holds no run of stqp; choose another --out")
    elif resume and not known.is_file():
        raise UsageError(f"there is no run to resume in {out}")


def _was_begun(out: Path) -> bool:
    """Whether a folder is empty but for what a run leaves that was killed while it cut patches."""
    names = {p.name for p in out.iterdir()} - {LOCK_NAME, PATCHES, "split.json"}
    return all(name.startswith(f".{PATCHES}.") for name in names)


def _fit(
    patches: Any, out: Path, settings: Settings, budget: "Budget", device: str, workers: int | None, resume: bool,
    progress: "Progress | None", record: RunRecord,
) -> dict[str, Any]:  # fmt: skip
    import lightning
    import numpy as np
    import torch

    from stqp.patches.store import TRAINING, VALIDATION
    from stqp.training.callbacks import Metrics, Report, Resumable
    from stqp.training.data import EndlessSampler, TrainingCrops
    from stqp.training.lite import RIM, LiteLayers
    from stqp.training.manifest import write_manifest
    from stqp.training.module import HoVerNetModule
    from stqp.training.validation import chosen_rows, score_network

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    arch = architecture(settings.arch)
    torch.manual_seed(settings.seed)
    network = build_network(settings.arch, patches.classes)
    initialize(network)
    parameters, gflop = cost(network, arch.input_size)
    held = np.flatnonzero(patches.side == VALIDATION)
    scored = chosen_rows(held, gflop, device) if len(held) else held
    margin = RIM if isinstance(network, LiteLayers) else arch.margin
    crops = TrainingCrops(patches, np.flatnonzero(patches.side == TRAINING), arch.input_size, margin, settings.seed)
    if not len(crops):
        raise InputError(f"no patches are left for training in {patches.path}; use a smaller --block or --validation 0")
    if workers is None:
        workers = _default_workers()
    loader = torch.utils.data.DataLoader(
        crops, batch_size=min(settings.batch_size, len(crops)), sampler=EndlessSampler(len(crops), settings.seed),
        drop_last=True, num_workers=workers, persistent_workers=workers > 0, pin_memory=device == "cuda",
    )  # fmt: skip
    rate = settings.lr or arch.learning_rate
    score = (lambda net: score_network(net, arch, patches, scored, device)) if len(held) else None
    metrics = Metrics(out / METRICS)
    module = HoVerNetModule(network, arch, budget, rate, score, metrics.write)
    callbacks: list[lightning.Callback] = [Resumable(out / CHECKPOINT)]
    if progress is not None:
        callbacks.append(Report(progress))
    trainer = lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=1,
        precision="16-mixed" if device == "cuda" else "32-true",
        max_epochs=budget.epochs or -1,
        max_steps=budget.steps or -1,
        callbacks=callbacks,
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    checkpoint = out / CHECKPOINT if resume and (out / CHECKPOINT).is_file() else None
    if resume and checkpoint is None:
        logger.info("the run stopped before its first checkpoint; it starts anew from its patches")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and logging intervals
        _run(trainer, module, loader, checkpoint)
    if not module.scores and score is not None:
        network.eval()
        module.scores = score(network.to(device))
    network.cpu().eval()
    buffer = io.BytesIO()  # torch writes a file's own name into it, and the temporary one is random
    torch.save(network.state_dict(), buffer)
    files.write_bytes(out / WEIGHTS, buffer.getvalue())
    steps = trainer.global_step
    trained = {
        "steps": steps, "crops": steps * (loader.batch_size or 1), "epochs": round(steps / max(len(loader), 1), 2),
        "minutes": round(module.seconds / 60, 2), "device": device, "learning_rate": rate,
        "batch_size": loader.batch_size, "seed": settings.seed,
    }  # fmt: skip
    write_manifest(
        out,
        settings.arch,
        patches,
        {"parameters": parameters, "gflop": round(gflop, 2)},
        trained,
        module.scores,
    )
    record.count("parameters", f"{parameters / 1e6:.2f} million, {gflop:.1f} GFLOP a {arch.input_size} px window")
    record.count("crops shown", int(trained["crops"]))
    record.count("steps", steps)
    record.count("minutes", trained["minutes"])
    for name, value in module.scores.items():
        record.count(f"validation {name}", round(value, 4))
    return {"training": trained, "validation": module.scores, "classes": patches.classes}


def _run(trainer: Any, module: Any, loader: Any, checkpoint: Path | None) -> None:
    """Fit; Lightning turns Ctrl-C into an exit of its own, which becomes an interruption again."""
    import signal
    import threading

    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=False)
    except SystemExit:
        raise KeyboardInterrupt from None
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        if "out of memory" in str(error).lower():
            raise EnvironmentProblem("the device's memory is full; use a smaller --batch-size") from error
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _default_workers() -> int:
    import os
    import sys

    if sys.platform != "linux":
        return 0  # processes start slowly where they do not fork, and a crop takes 20 ms
    return max(1, min(8, (os.cpu_count() or 2) - 1))
