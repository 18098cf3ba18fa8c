"""Read the weights of any HoVer-Net, whoever wrote them, without running a line of what the file says.

Known are runs of ``stqp train`` and the checkpoints they go on from, plain state_dicts (TIAToolbox's
``HoVerNet``), the official repository's ``{"desc": {"module.conv0...": ...}}``, and the names of TIAToolbox's
registered models. Architecture and number of types are read from the shapes of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stqp.errors import InputError, UsageError
from stqp.training.manifest import MANIFEST, WEIGHTS, read_manifest
from stqp.training.network import ARCHITECTURES, MPP, build_network
from stqp.training.registered import registered_models, same_class, weights_of
from stqp.training.weights import HEAD, ROWS, check_state, detect_architecture, load_safely, unwrapped

if TYPE_CHECKING:
    import torch
    from torch import nn

    State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what they say of their network.

    Attributes
    ----------
    architecture : str
        ``fast``, ``original`` or ``lite``.
    num_types : int or None
        Classes with background; None for a network that does not type.
    classes : tuple of str, or None
        Names of the classes 1, 2, ...; None where nobody wrote them down.
    state : dict
        A state_dict that fits strictly.
    source : str
        What it was: ``stqp run``, ``stqp checkpoint``, ``registered model``, ``official checkpoint``,
        ``state_dict``.
    path : Path
        The file.
    name : str
        Of the run, the registered model or the file.
    mpp : float
        µm per px of the images it knows.
    manifest : dict or None
        Of a run.
    """

    architecture: str
    num_types: int | None
    classes: tuple[str, ...] | None
    state: State
    source: str
    path: Path
    name: str
    mpp: float = MPP
    manifest: dict[str, Any] | None = None


def read_checkpoint(
    where: str | Path,
    classes: Sequence[str] | None = None,
    folder: Path | None = None,
    download: bool = True,
) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    where
        Folder of a run, file, or name of a registered model of TIAToolbox (``hovernet_fast-pannuke``, or
        ``pannuke``).
    classes
        Names of the classes 1, 2, ...; they take the place of those that the checkpoint has.
    folder
        Where the files of registered models may lie, see `stqp.training.registered.weights_of`.
    download
        Whether the weights of a registered model may be fetched when they are not there.

    Raises
    ------
    InputError
        When there is no such thing, when the file is corrupt or needs code to be read, when its weights are
        of no known network, or incomplete.
    UsageError
        When `classes` are not as many as the network has.
    EnvironmentProblem
        When the weights of a registered model are not on this machine.
    """
    path = Path(where)
    if any((path / name).is_file() for name in (MANIFEST, "train.toml")):
        manifest = read_manifest(path)
        file = path / WEIGHTS
        if not file.is_file():
            raise InputError(f"expected the weights {WEIGHTS} beside the manifest, found none in {path}")
        found = _checked(unwrapped(load_safely(file), file), file, "stqp run", manifest)
    elif path.is_file():
        found = _read_file(path)
    else:
        models = registered_models()
        model = models.get(str(where))
        if model is None:
            what = f"{path} is a folder without a run of stqp train" if path.is_dir() else f"there is no {path}"
            names = ", ".join(sorted({m.name for m in models.values()}))
            raise InputError(
                f"{what}; expected a run's folder, a file of weights, or a model that TIAToolbox has: {names}"
            )
        file = weights_of(model, folder, download)
        found = _checked(unwrapped(load_safely(file), file), file, "registered model", None, model.classes)
        found = replace(found, name=model.name, mpp=model.mpp)
    return found if classes is None else _named(found, classes)


def load_network(checkpoint: Checkpoint, tiatoolbox: bool = False) -> nn.Module:
    """Make the network of a checkpoint, in evaluation mode.

    Parameters
    ----------
    checkpoint
        From `read_checkpoint`.
    tiatoolbox
        As `stqp.training.network.build_network`.
    """
    network = build_network(checkpoint.architecture, _class_names(checkpoint), tiatoolbox)
    network.load_state_dict(checkpoint.state, strict=True)
    return network.eval()


def check_initial(where: str | Path, arch: str, folder: Path | None = None, download: bool = True) -> Checkpoint:
    """Read a checkpoint that a network of an architecture shall start from.

    Parameters
    ----------
    where, folder, download
        As `read_checkpoint`.
    arch
        Name of the architecture.

    Raises
    ------
    InputError, EnvironmentProblem
        As `read_checkpoint`, and when the checkpoint is of another architecture.
    """
    checkpoint = read_checkpoint(where, folder=folder, download=download)
    if arch != checkpoint.architecture:
        raise InputError(
            f"expected weights of the {arch} network, found the {checkpoint.architecture} one in "
            f"{checkpoint.path}; train with --arch {checkpoint.architecture}, or start from another checkpoint"
        )
    return checkpoint


def load_initial(
    network: nn.Module,
    where: str | Path,
    classes: Sequence[str],
    folder: Path | None = None,
    download: bool = True,
) -> dict[str, Any]:
    """Start a network from a checkpoint; what the checkpoint lacks stays as it is.

    The rows of the last layer of tp are taken over by the names of their classes, whatever their order, and
    those of classes that the checkpoint does not know stay as they are. A checkpoint without names gives all
    rows where it has as many classes, else only the one of background.

    Parameters
    ----------
    network
        With the weights to keep where the checkpoint has none; changed in place.
    where, folder, download
        As `read_checkpoint`.
    classes
        Names of the network's classes.

    Returns
    -------
    dict
        ``source``, ``path``, ``name``, ``architecture``; ``loaded``, ``new`` and ``ignored``, numbers of tensors;
        ``classes``, for each class that of the checkpoint it starts from or None; ``summary``, one sentence.

    Raises
    ------
    InputError, EnvironmentProblem
        As `check_initial`.
    """
    import torch

    target = network.state_dict()
    wanted = detect_architecture(target)
    if wanted is None:
        raise ValueError("expected a HoVer-Net")
    checkpoint = check_initial(where, wanted, folder, download)
    head, rows = HEAD[wanted], ROWS[wanted]
    state: State = {}
    heads = {f"{head}.weight", f"{head}.bias"}
    for key, value in checkpoint.state.items():
        if key in target and key not in heads:
            state[key] = value
    origin: dict[str, str | None] = dict.fromkeys(classes)
    if checkpoint.num_types is not None and heads <= set(target):
        pairs = _row_pairs(checkpoint, classes)
        for key in heads:
            value = target[key].clone()
            for new, old in pairs.items():
                value[new * rows : (new + 1) * rows] = checkpoint.state[key][old * rows : (old + 1) * rows]
            state[key] = value
        names = checkpoint.classes or tuple(f"type {i}" for i in range(1, checkpoint.num_types))
        for new, old in pairs.items():
            if new:
                origin[classes[new - 1]] = names[old - 1]
    ignored = [key for key in checkpoint.state if key not in target]
    new_tensors = [key for key in target if key not in state]
    with torch.no_grad():
        network.load_state_dict({**target, **state}, strict=True)
    return {
        "source": checkpoint.source,
        "path": str(checkpoint.path),
        "name": checkpoint.name,
        "architecture": checkpoint.architecture,
        "loaded": len(state),
        "new": len(new_tensors),
        "ignored": len(ignored),
        "classes": origin,
        "summary": _summary(checkpoint, origin),
    }


def _row_pairs(checkpoint: Checkpoint, classes: Sequence[str]) -> dict[int, int]:
    """For each type of the new head that can be taken over, its number in the checkpoint."""
    pairs = {0: 0}
    if checkpoint.classes is not None:
        known = {same_class(name): i for i, name in enumerate(checkpoint.classes, start=1)}
        pairs.update({i: known[same_class(c)] for i, c in enumerate(classes, start=1) if same_class(c) in known})
    elif checkpoint.num_types == len(classes) + 1:
        pairs.update({i: i for i in range(1, len(classes) + 1)})
    return pairs


def _summary(checkpoint: Checkpoint, origin: Mapping[str, str | None]) -> str:
    kept = [f"{new} from {old}" if new != old else new for new, old in origin.items() if old is not None]
    fresh = [new for new, old in origin.items() if old is None]
    text = f"{checkpoint.name} ({checkpoint.source}, {checkpoint.architecture})"
    if checkpoint.num_types is None:
        return f"{text}; it does not type, so the type branch starts anew"
    if checkpoint.classes is None and kept:
        return f"{text}; it has no class names, so its {len(kept)} types are taken in their order"
    if kept:
        text += f"; types taken over: {', '.join(kept)}"
    return text + (f"; new: {', '.join(fresh)}" if fresh else "")


def _read_file(path: Path) -> Checkpoint:
    content = load_safely(path)
    manifest: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    source = "state_dict"
    if isinstance(content, Mapping) and "stqp_training" in content:
        source = "stqp checkpoint"
        content = _kept(content)
        own = content.get("stqp_classes")
        classes = tuple(str(c) for c in own) if own else _classes_of_patches(path.parent)
    elif isinstance(content, Mapping) and isinstance(content.get("desc"), Mapping):
        source = "official checkpoint"
    elif path.name == WEIGHTS and (path.parent / MANIFEST).is_file():
        source, manifest = "stqp run", read_manifest(path.parent)
    elif path.name.startswith("best-") and (path.parent / "train.toml").is_file():
        source, classes = "stqp checkpoint", _classes_of_patches(path.parent)
    return _checked(unwrapped(content, path), path, source, manifest, classes)


def _kept(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint with the averaged weights in the place of the last ones, where there are any."""
    average = content.get("average")
    if not isinstance(average, Mapping):
        return content
    return {**content, "state_dict": {k: v for k, v in average.items() if str(k).startswith("module.")}}


def _classes_of_patches(run: Path) -> tuple[str, ...] | None:
    """Classes of a run that has not ended: those of its patches."""
    from stqp.patches.store import PatchFile

    try:
        return tuple(PatchFile(run / "patches.h5").classes)
    except InputError:
        return None


def _checked(
    state: State,
    path: Path,
    source: str,
    manifest: dict[str, Any] | None = None,
    classes: tuple[str, ...] | None = None,
) -> Checkpoint:
    """Hold weights against the network they are of."""
    arch = detect_architecture(state)
    if arch is None:
        some = ", ".join([*state][:3]) or "none"
        raise InputError(
            f"the weights in {path} are of no HoVer-Net that stqp knows ({', '.join(ARCHITECTURES)}): they are named "
            f"{some}, ..."
        )
    if "decoder.ls.u0.conv.weight" in state:
        raise InputError(f"the weights in {path} are of HoVerNetPlus, which also segments layers; stqp runs HoVer-Net")
    bias = state.get(f"{HEAD[arch]}.bias")
    num_types = None if bias is None else len(bias) // ROWS[arch]
    if manifest is not None:
        classes = tuple(str(c) for c in manifest["classes"])
        if manifest["architecture"] != arch:
            raise InputError(f"the manifest says {manifest['architecture']}, but the weights {path} are of {arch}")
    checkpoint = Checkpoint(arch, num_types, None, state, source, path, _name_of(path, manifest), manifest=manifest)
    if manifest is not None:
        checkpoint = replace(checkpoint, mpp=float(manifest["mpp"]))
    check_state(state, arch, _class_names(checkpoint), path)
    if classes is not None and num_types is not None:
        checkpoint = _named(checkpoint, classes)
    return checkpoint


def _named(checkpoint: Checkpoint, classes: Sequence[str]) -> Checkpoint:
    has = (checkpoint.num_types or 1) - 1
    if len(classes) != has:
        given = ", ".join(classes) or "none"
        message = (
            f"{checkpoint.path} types {has} classes and background, so it does not fit {len(classes)} names ({given})"
        )
        raise InputError(message) if checkpoint.manifest is not None else UsageError(message)
    if len({*classes}) < len(classes):
        raise UsageError(f"expected each class once, found {', '.join(classes)}")
    return replace(checkpoint, classes=tuple(classes))


def _class_names(checkpoint: Checkpoint) -> list[str] | None:
    if checkpoint.num_types is None:
        return None
    return [*(checkpoint.classes or (f"Type {i}" for i in range(1, checkpoint.num_types)))]


def _name_of(path: Path, manifest: Mapping[str, Any] | None) -> str:
    if manifest is not None:
        return str(manifest.get("name") or path.resolve().parent.name)
    return path.stem
