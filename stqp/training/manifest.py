"""The manifest of a checkpoint: all that is needed to run it, and where it comes from."""

import hashlib
import json
from pathlib import Path
from typing import Any

from stqp import __version__, files
from stqp.errors import InputError
from stqp.patches.store import PatchFile
from stqp.taxonomy import color_of
from stqp.training.network import architecture

WEIGHTS, MANIFEST = "model.pth", "manifest.json"


def ioconfig(arch: str, mpp: float) -> dict[str, Any]:
    """Keyword arguments of TIAToolbox's `IOInstanceSegmentorConfig` for a network."""
    geometry = architecture(arch)
    resolution = {"units": "mpp", "resolution": mpp}
    return {
        "input_resolutions": [resolution],
        "output_resolutions": [resolution] * 3,
        "save_resolution": resolution,
        "patch_input_shape": [geometry.input_size] * 2,
        "patch_output_shape": [geometry.output_size] * 2,
        "stride_shape": [geometry.output_size] * 2,
        "margin": 128,
        "tile_shape": [1024, 1024],
    }


def write_manifest(
    out: Path,
    arch: str,
    patches: PatchFile,
    network: dict[str, Any],
    training: dict[str, Any],
    scores: dict[str, float],
) -> dict[str, Any]:
    """Write ``manifest.json`` beside ``model.pth``.

    Parameters
    ----------
    out
        Folder of the run.
    arch
        Name of the architecture.
    patches
        What was learnt from.
    network, training, scores
        Size, course and validation scores, kept as they are.

    Returns
    -------
    dict
        The manifest.
    """
    import torch

    geometry = architecture(arch)
    digest = hashlib.sha256()
    for array in (patches.origin, patches.source, patches.side):
        digest.update(array.tobytes())
    digest.update(json.dumps(patches.sources).encode())
    weights = hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()
    names = {"0": "Background", **{str(i + 1): name for i, name in enumerate(patches.classes)}}
    manifest = {
        "format": 1,
        "name": out.resolve().name,
        "architecture": arch,
        "num_types": len(patches.classes) + 1,
        "classes": patches.classes,
        "nuc_type_dict": names,
        "colors": {name: [*color_of(name)] for name in patches.classes},
        "mpp": patches.mpp,
        "patch_input_shape": [geometry.input_size] * 2,
        "patch_output_shape": [geometry.output_size] * 2,
        "ioconfig": ioconfig(arch, patches.mpp),
        "weights": {"file": WEIGHTS, "sha256": weights, **network},
        "data": {"patches": len(patches), "fingerprint": digest.hexdigest(), "sources": patches.sources},
        "split": json.loads((out / "split.json").read_text(encoding="utf-8")),
        "training": training,
        "validation": scores,
        "versions": {"stqp": __version__, "torch": torch.__version__},
    }
    files.write_json(out / MANIFEST, manifest)
    return manifest


def read_manifest(run: Path) -> dict[str, Any]:
    """Read the manifest of a run.

    Raises
    ------
    InputError
        When the folder is no finished run.
    """
    path = run / MANIFEST
    if not path.is_file():
        more = "; its training has not ended, go on with stqp train --resume" if (run / "train.toml").is_file() else ""
        raise InputError(f"{run} holds no manifest.json, so it is no finished run of stqp train{more}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"architecture", "classes", "mpp", "split"}.difference(manifest)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); train again or restore it") from error
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; it was not written by stqp train")
    return manifest
