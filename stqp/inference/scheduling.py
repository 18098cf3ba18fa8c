"""Slides as tasks: one after the other here, or on the workers of a Dask scheduler."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from stqp.errors import EnvironmentProblem, InputError, StqpError, UsageError
from stqp.inference.model import Predictor
from stqp.inference.one import Progress, Settings, predict_one
from stqp.inference.targets import Job

logger = logging.getLogger(__name__)
LOCAL, SLURM = "local", "slurm"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}
"""What glibc's allocator would grow to by itself. Dask has workers give back each freed block of 64 KiB, and a network
that trains then spends half its time on pages of memory that it had a moment ago."""

Replicas = Predictor | Sequence[Predictor]
# a network (or several of it, one a device), or what makes it: a worker makes its own, once
Model = Replicas | Callable[[], Replicas]
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Outcome:
    """What became of a slide.

    Attributes
    ----------
    job : Job
    result : dict or None
        As `predict_one` gives it.
    error : str or None
        What went wrong.
    """

    job: Job
    result: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Scheduler:
    """Where the slides are predicted.

    Attributes
    ----------
    kind : str
        "local" for a cluster of processes on this machine, "slurm", or the address of a running Dask scheduler.
    workers : int or None
        For "local" and "slurm"; a GPU each, or a quarter of the processors each, when None.
    options : dict
        Arguments of `dask_jobqueue.SLURMCluster`, over those of its configuration file.
    """

    kind: str
    workers: int | None = None
    options: Mapping[str, str | int] | None = None


def as_predictors(model: Model) -> Sequence[Predictor]:
    """Make the network, unless it is made; one for each device."""
    made = model() if callable(model) else model
    return made if isinstance(made, Sequence) else [made]


def run_here(
    jobs: Sequence[Job], predictors: Sequence[Predictor], settings: Settings, mark: str, bar: Bar | None
) -> Iterator[Outcome]:
    """Predict slides one after the other; one that fails does not stop the others.

    Raises
    ------
    EnvironmentProblem
        When the machine lacks something, for which the next slide would fail too.
    """
    for job in jobs:
        with bar(job.name) if bar else nullcontext() as shown:
            outcome = _attempt(job, predictors, settings, mark, shown)
        yield outcome


def _attempt(
    job: Job, predictors: Sequence[Predictor], settings: Settings, mark: str, shown: Progress | None
) -> Outcome:
    status = job.status

    def progress(done: int, total: int) -> None:
        status.running(done, total)
        if shown is not None:
            shown(done, total)

    status.running(0, 0)
    try:
        result = predict_one(job, predictors, settings, progress)
    except InputError as error:
        status.failed(str(error))
        return Outcome(job, error=str(error))
    except OSError as error:
        import errno

        status.failed(str(error))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentProblem(f"the disk is full ({error.filename or job.home})") from error
        return Outcome(job, error=str(error))
    except KeyboardInterrupt:
        status.stopped()
        raise
    except BaseException as error:
        status.failed(str(error) or type(error).__name__)
        raise
    status.done(result, settings.fingerprint(mark, job))
    return Outcome(job, result)


def run_on(
    scheduler: Scheduler, jobs: Sequence[Job], model: Model, settings: Settings, mark: str, shown: Progress | None
) -> Iterator[Outcome]:
    """Predict slides as tasks of a Dask scheduler, one a task, in the order in which they end.

    Parameters
    ----------
    scheduler
        Where.
    jobs, model, settings, mark
        As `run_here`; the paths must mean the same on the workers.
    shown
        Called with the slides done and their number.

    Raises
    ------
    EnvironmentProblem
        When the scheduler cannot be reached, or a worker's machine lacks something.
    """
    from distributed import as_completed

    with connected(scheduler) as client:
        tasks = [client.submit(_task, job, model, settings, mark, pure=False, retries=0) for job in jobs]
        of_key = {task.key: job for task, job in zip(tasks, jobs, strict=True)}
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                job = of_key[task.key]
                if task.status == "error":
                    yield _lost(job, task.exception())
                else:
                    yield _told(job, task.result())
                if shown is not None:
                    shown(done, len(jobs))
        finally:
            client.cancel(tasks)


def _lost(job: Job, error: BaseException) -> Outcome:
    """A worker that died, as the out-of-memory killer has it."""
    sentence = f"the worker that had the slide is gone ({error}); it may have run out of memory"
    job.status.failed(sentence)
    return Outcome(job, error=sentence)


def _told(job: Job, answer: dict[str, Any]) -> Outcome:
    kind = answer.get("kind")
    if kind == "environment":
        raise EnvironmentProblem(f"{job.name}: {answer['error']}")
    if kind == "usage":
        raise UsageError(answer["error"])
    if kind == "bug":
        raise RuntimeError(f"a worker failed at {job.name}:\n{answer['error']}")
    return Outcome(job, answer.get("result"), answer.get("error"))


def _task(job: Job, model: Model, settings: Settings, mark: str) -> dict[str, Any]:
    """Predict one slide on a worker; errors come back as text, so that any class of them travels."""
    if settings.workers is None and (share := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        settings = replace(settings, workers=int(share))
    try:
        outcome = _attempt(job, _kept(model), settings, mark, None)
    except EnvironmentProblem as error:
        return {"kind": "environment", "error": str(error)}
    except StqpError as error:
        return {"kind": "usage", "error": str(error)}
    except Exception:
        return {"kind": "bug", "error": traceback.format_exc()}
    return {"result": outcome.result, "error": outcome.error}


_models: dict[bytes, Sequence[Predictor]] = {}


def _kept(model: Model) -> Sequence[Predictor]:
    """Network of this worker, made at its first slide."""
    if not callable(model):
        return as_predictors(model)
    import pickle

    key = pickle.dumps(model)
    if key not in _models:
        _models.clear()
        _models[key] = as_predictors(model)
    return _models[key]


@contextlib.contextmanager
def connected(scheduler: Scheduler) -> Iterator[Any]:
    """Connect to the scheduler; a cluster that is made here ends with the block."""
    from distributed import Client

    for name in [n for n in logging.root.manager.loggerDict if n.split(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what becomes of the slides is told by stqp
    if scheduler.kind == LOCAL:
        with _without_main(), _local(scheduler) as cluster, Client(cluster) as client:
            threads = max(1, (os.cpu_count() or 1) // max(1, len(cluster.workers)))
            client.register_plugin(_share(_gpus(), threads))
            yield client
        return
    if scheduler.kind == SLURM:
        with _slurm(scheduler) as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(scheduler.kind, timeout="15s")
    except (OSError, ValueError, TypeError) as error:
        raise EnvironmentProblem(
            f"no Dask scheduler answers at {scheduler.kind} ({error}); expected local, slurm, or an address as in "
            "tcp://host:8786"
        ) from error
    with client:
        yield client


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the script that runs: a worker needs nothing of it, and one without a guard would run in each of them."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        main.__spec__ = None
        if "__file__" in kept:
            del main.__file__
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def _local(scheduler: Scheduler) -> Any:
    import dask
    from distributed import LocalCluster

    gpus = _gpus()
    processors = os.cpu_count() or 1
    workers = scheduler.workers or len(gpus) or max(1, processors // 4)
    settings = {
        # a daemon could start no processes, which training loads its crops by; workers end with this one all the same
        "distributed.worker.daemon": False,
        "distributed.nanny.pre-spawn-environ": ALLOCATOR,
    }
    with dask.config.set(settings):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # Dask's own is one port for all, on all interfaces
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )


def _share(gpus: Sequence[str], threads: int) -> Any:
    """What a worker of this machine may use: one GPU, or its part of the processors."""
    from distributed import WorkerPlugin

    class Share(WorkerPlugin):
        """Sets the environment, before torch is imported."""

        name = "stqp-share"

        def setup(self, worker: Any) -> None:
            with contextlib.suppress(ValueError):  # Ctrl-C is for the one who ends the workers
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.environ["OMP_NUM_THREADS"] = str(threads)  # Dask has set 1
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]

    return Share()


def _gpus() -> list[str]:
    """CUDA devices of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = torch.cuda.device_count()
    return [v for v in visible.split(",") if v][:number] if visible else [str(i) for i in range(number)]


def _slurm(scheduler: Scheduler) -> Any:
    cluster = slurm_cluster(scheduler.options or {})
    if shutil.which("sbatch") is None:
        cluster.close()
        raise EnvironmentProblem("the scheduler slurm needs the command sbatch, which this machine lacks")
    cluster.scale(jobs=scheduler.workers or 1)
    return cluster


def slurm_cluster(options: Mapping[str, str | int]) -> Any:
    """Make a `dask_jobqueue.SLURMCluster` without workers; ``cores`` are those of one slide.

    Raises
    ------
    EnvironmentProblem
        When dask-jobqueue is not installed.
    UsageError
        When it does not take an option.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise EnvironmentProblem(
            "the scheduler slurm needs dask-jobqueue, which is not installed; pip install 'stqp[slurm]'"
        ) from error
    given = dict(options)
    cores = int(given.pop("cores", 1))
    environment = {**ALLOCATOR, "OMP_NUM_THREADS": str(cores)}
    try:
        # one slide at a time, however many processors it has
        return SLURMCluster(**{
            "cores": 1, "processes": 1, "memory": "16GiB", "job_cpu": cores,
            "job_script_prologue": [f"export {name}={value}" for name, value in environment.items()], **given,
        })  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UsageError(f"dask-jobqueue does not take the options of --slurm ({error})") from error


def mark_of(model: Model) -> str:
    """Text that is another one for another network."""
    if not callable(model):
        one = as_predictors(model)[0]
        return f"{one.name} {one.mpp} {one.input_size} {[*one.classes]}"
    parts = [repr(model)]
    if isinstance(model, functools.partial):
        parts = [repr(a) for a in (*model.args, *model.keywords.values())]
        for argument in model.args:
            with contextlib.suppress(OSError, TypeError, ValueError):
                path = os.fspath(argument)
                for place in (path, os.path.join(path, "model.pth")):  # noqa: PTH118
                    stat = os.stat(place)  # noqa: PTH116
                    parts.append(f"{stat.st_size} {stat.st_mtime}")
    return " ".join(parts)
