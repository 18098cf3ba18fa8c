"""Networks for other programs: TIAToolbox, TorchScript, ONNX; each held against the network it was made from."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stqp import files
from stqp.errors import EnvironmentProblem, StqpError, UsageError
from stqp.importing.staged import StagedFiles
from stqp.inference.tiatoolbox_files import CLASS_FILE, SCRIPT_FILE, lite_class, resolution_note, script
from stqp.record import RunRecord
from stqp.training.checkpoints import Checkpoint, load_network, read_checkpoint
from stqp.training.manifest import IOCONFIG, MANIFEST, WEIGHTS, ioconfig, versions, write_ioconfig
from stqp.training.network import architecture

if TYPE_CHECKING:
    import torch
    from torch import nn

    Run = Callable[[torch.Tensor], Sequence[torch.Tensor]]

FORMATS = ("tiatoolbox", "torchscript", "onnx")
SCRIPTED, GRAPH = "model.pt", "model.onnx"
TOLERANCE = 1e-4
"""Largest difference of outputs, relative to their largest value."""
OPSET = 18
_STEP = 16  # px; sides of a window differ by multiples of it


def export_model(
    model: str | Path, to: str, out: Path, classes: Sequence[str] | None = None, force: bool = False
) -> RunRecord:
    """Write a network for another program, and hold what it gives against what the network gives.

    Parameters
    ----------
    model, classes
        As `stqp.training.checkpoints.read_checkpoint`.
    to
        ``tiatoolbox`` (weights, ioconfig.yaml and a script), ``torchscript`` or ``onnx``.
    out
        Folder to write; its files come together or not at all.
    force
        Write into a folder that holds files, replacing those of the same names.

    Returns
    -------
    RunRecord
        ``results`` has ``files`` and the largest ``difference`` of outputs.

    Raises
    ------
    UsageError
        When `out` holds files and `force` is not asked for, or classes have no names.
    InputError
        When there is no such model.
    EnvironmentProblem
        When a package is missing, or the disk is full.
    StqpError
        When the outputs differ.
    """
    record = RunRecord("model export", {"model": model, "to": to, "out": out, "classes": classes, "force": force})
    if to not in FORMATS:
        raise UsageError(f"there is no format {to!r}; choose one of {', '.join(FORMATS)}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out needs a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UsageError(f"{out} holds files already; choose another --out, or replace them by --force")
    checkpoint = read_checkpoint(model, classes)
    if checkpoint.num_types is not None and checkpoint.classes is None:
        number = checkpoint.num_types - 1
        raise UsageError(f"{checkpoint.path} does not say the names of its {number} classes; give them by --classes")
    if to == "onnx":
        _check_packages()
    about = described(checkpoint)
    with StagedFiles(out) as staged:
        difference = {"tiatoolbox": _to_tiatoolbox, "torchscript": _to_torchscript, "onnx": _to_onnx}[to](
            checkpoint, about, staged, record
        )
        if difference > TOLERANCE:
            raise StqpError(
                f"the exported network gives other outputs than {checkpoint.name} (by {difference:.2g} of the "
                "largest), so nothing was written; please report this"
            )
        files.write_json(staged.path(MANIFEST), about)
        names = staged.names
        staged.place()
    record.count("architecture", checkpoint.architecture)
    record.count("largest difference of outputs", f"{difference:.1e} of the largest value")
    record.count("files", ", ".join(names))
    record.results.update(out=str(out), files=names, difference=difference, format=to)
    return record


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """A manifest for a checkpoint: its own where it has one, else what its weights say."""
    geometry = architecture(checkpoint.architecture)
    names = None
    if checkpoint.classes is not None:
        names = {"0": "Background", **{str(i): name for i, name in enumerate(checkpoint.classes, start=1)}}
    typed = checkpoint.num_types is not None
    own = checkpoint.manifest or {"format": 1, "split": {}, "versions": versions()}
    return {
        **own,
        "name": checkpoint.name,
        "architecture": checkpoint.architecture,
        "num_types": checkpoint.num_types,
        "classes": [*(checkpoint.classes or ())],
        "nuc_type_dict": names,
        "mpp": checkpoint.mpp,
        "patch_input_shape": [geometry.input_size] * 2,
        "patch_output_shape": [geometry.output_size] * 2,
        "fully_convolutional": geometry.fully_convolutional,
        "ioconfig": ioconfig(checkpoint.architecture, checkpoint.mpp, typed),
    }


def output_names(checkpoint: Checkpoint) -> list[str]:
    """Names of the outputs, in their order."""
    return ["np", "hv"] if checkpoint.num_types is None else ["np", "hv", "tp"]


def _to_tiatoolbox(checkpoint: Checkpoint, about: Mapping[str, Any], staged: StagedFiles, record: RunRecord) -> float:
    import torch

    weights = staged.path(WEIGHTS)
    buffer = io.BytesIO()  # torch writes a file's own name into it, and the temporary one is random
    torch.save(checkpoint.state, buffer)
    files.write_bytes(weights, buffer.getvalue())
    write_ioconfig(staged.path(IOCONFIG), checkpoint.architecture, checkpoint.mpp, checkpoint.num_types is not None)
    files.write_bytes(staged.path(SCRIPT_FILE), script(checkpoint.architecture).encode())
    names = None if about["nuc_type_dict"] is None else {int(k): v for k, v in about["nuc_type_dict"].items()}
    theirs: nn.Module
    if checkpoint.architecture == "lite":
        path = staged.path(CLASS_FILE)
        files.write_bytes(path, lite_class().encode())
        theirs = _class_of(path)(num_types=checkpoint.num_types, nuc_type_dict=names)
    else:
        from tiatoolbox.models.architecture.hovernet import HoVerNet

        theirs = HoVerNet(num_types=checkpoint.num_types, mode=checkpoint.architecture, nuc_type_dict=names)
    theirs.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    if note := resolution_note(checkpoint.mpp):
        record.warn(note)
    record.count("run", f"python {staged.folder / SCRIPT_FILE} SLIDE --out results")
    return _difference(checkpoint, _tuple_of(theirs.eval(), checkpoint), resize=False)


def _class_of(path: Path) -> Any:
    """The class in a file, run as TIAToolbox's script will import it."""
    import importlib.machinery
    import importlib.util

    loader = importlib.machinery.SourceFileLoader("hovernet_lite", str(path))
    spec = importlib.util.spec_from_loader("hovernet_lite", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module.HoVerNetLite


def _to_torchscript(checkpoint: Checkpoint, about: Mapping[str, Any], staged: StagedFiles, record: RunRecord) -> float:
    import torch

    network = _tuple_of(load_network(checkpoint), checkpoint)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # on the constants of sizes, which are constant; the check below sees to it
        traced = torch.jit.trace(network, _images(checkpoint), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={MANIFEST: json.dumps(about)})
    files.write_bytes(staged.path(SCRIPTED), buffer.getvalue())
    buffer.seek(0)
    return _difference(checkpoint, torch.jit.load(buffer, map_location="cpu"), resize=True)


def _to_onnx(checkpoint: Checkpoint, about: Mapping[str, Any], staged: StagedFiles, record: RunRecord) -> float:
    import torch
    from torch.export import Dim

    network = _tuple_of(load_network(checkpoint), checkpoint)
    size: dict[int, Any] = {0: Dim("batch")}
    if about["fully_convolutional"]:
        # sides of 256 px and more; on each, 92 px are lost
        size |= {2: _STEP * Dim("h", min=16, max=2**16), 3: _STEP * Dim("w", min=16, max=2**16)}
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (_images(checkpoint),), dynamo=True, verbose=False, opset_version=OPSET,
            input_names=["images"], output_names=output_names(checkpoint), dynamic_shapes=(size,),
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    kept = ("name", "architecture", "classes", "mpp", "patch_input_shape", "patch_output_shape")
    for key in kept:
        value = about[key]
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    content = proto.SerializeToString()
    files.write_bytes(staged.path(GRAPH), content)
    run, judge = _onnx_runner(content)
    record.count("checked with", judge)
    return _difference(checkpoint, run, resize=judge == "onnxruntime")


def _check_packages() -> None:
    """The packages that exporting to ONNX needs.

    Raises
    ------
    EnvironmentProblem
        When they are not installed.
    """
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"writing ONNX needs the packages onnx and onnxscript, and {' and '.join(missing)} cannot be found; "
            "pip install 'stqp[export]'"
        )


def _onnx_runner(content: bytes) -> tuple[Run, str]:
    """Something that runs an ONNX graph, and its name: onnxruntime, or the slow reference of onnx."""
    import torch

    session: Any
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        judge = "onnxruntime"
    except ImportError:
        import onnx
        from onnx.reference import ReferenceEvaluator

        session, judge = ReferenceEvaluator(onnx.load_model_from_string(content)), "the reference of onnx"

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]

    return run, judge


def _tuple_of(network: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """The network with its outputs in a row; what is exported has no dict."""
    from torch import nn

    names = output_names(checkpoint)

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.network(images)
            return tuple(outputs[name] for name in names)

    return Outputs().eval()


def _images(checkpoint: Checkpoint, number: int = 2, more: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Windows of noise, always the same, of the network's size and `more` px."""
    import torch

    side = architecture(checkpoint.architecture).input_size
    generator = torch.Generator().manual_seed(0)
    return torch.rand((number, 3, side + more[0], side + more[1]), generator=generator) * 255


def _difference(checkpoint: Checkpoint, run: Run, resize: bool) -> float:
    """Largest difference of outputs from the network's, by their largest value; at another batch and size too."""
    import torch

    network = _tuple_of(load_network(checkpoint), checkpoint)
    windows = [_images(checkpoint, 1)]
    if resize:
        whole = architecture(checkpoint.architecture).fully_convolutional
        windows.append(_images(checkpoint, 2 if not whole else 1, (_STEP, 2 * _STEP) if whole else (0, 0)))
    worst = 0.0
    with torch.no_grad():
        for images in windows:
            for ours, theirs in zip(network(images), run(images), strict=True):
                if ours.shape != theirs.shape:
                    return float("inf")
                worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-6)))
    return worst if worst == worst else float("inf")
