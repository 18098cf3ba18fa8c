"""The manifest of a checkpoint: all that is needed to run it, and where it comes from."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from stqp import __version__, files
from stqp.errors import InputError
from stqp.patches.store import SIDES, PatchFile
from stqp.training.network import architecture

WEIGHTS, MANIFEST, IOCONFIG = "model.pth", "manifest.json", "ioconfig.yaml"
FORMAT = 1
_PACKAGES = ("torch", "tiatoolbox", "lightning", "numpy")


def ioconfig(arch: str, mpp: float, typed: bool = True) -> dict[str, Any]:
    """Keyword arguments of TIAToolbox's `IOInstanceSegmentorConfig` for a network.

    Parameters
    ----------
    arch
        Name of the architecture.
    mpp
        µm per px of its images.
    typed
        Whether it has a head of types.
    """
    geometry = architecture(arch)

    def resolution() -> dict[str, Any]:
        return {"units": "mpp", "resolution": mpp}

    return {
        "input_resolutions": [resolution()],
        "output_resolutions": [resolution() for _ in range(3 if typed else 2)],
        "save_resolution": resolution(),
        "patch_input_shape": [geometry.input_size] * 2,
        "patch_output_shape": [geometry.output_size] * 2,
        "stride_shape": [geometry.output_size] * 2,
        "margin": 128,
        "tile_shape": [1024, 1024],
        "ignore_index": 0,
    }


def write_ioconfig(path: Path, arch: str, mpp: float, typed: bool = True) -> None:
    """Write `ioconfig` as YAML, as TIAToolbox's ``--yaml-config-path`` reads it."""
    import yaml

    head = "# IOInstanceSegmentorConfig of TIAToolbox: IOInstanceSegmentorConfig(**yaml.safe_load(open(...)))\n"
    text = yaml.safe_dump(ioconfig(arch, mpp, typed), sort_keys=False, default_flow_style=None)
    files.write_bytes(path, (head + text).encode())


def write_manifest(
    out: Path,
    arch: str,
    patches: PatchFile,
    network: dict[str, Any],
    training: dict[str, Any],
    scores: dict[str, float],
) -> dict[str, Any]:
    """Write ``manifest.json`` and ``ioconfig.yaml`` beside ``model.pth``.

    Parameters
    ----------
    out
        Folder of the run, with ``model.pth`` and ``split.json``.
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
    from stqp.training.provenance import label_provenance, project_colors

    geometry = architecture(arch)
    weights = hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()
    names = {"0": "Background", **{str(i + 1): name for i, name in enumerate(patches.classes)}}
    colors = project_colors(patches.sources, patches.classes)
    manifest = {
        "format": FORMAT,
        "name": out.resolve().name,
        "architecture": arch,
        "num_types": len(patches.classes) + 1,
        "classes": patches.classes,
        "nuc_type_dict": names,
        "colors": {name: [*color] for name, color in colors.items()},
        "mpp": patches.mpp,
        "input": {"channels": "RGB", "range": [0, 255], "layout": "NCHW"},
        "outputs": {"tp": "logits", "np": "logits", "hv": "horizontal, vertical"},
        "patch_input_shape": [geometry.input_size] * 2,
        "patch_output_shape": [geometry.output_size] * 2,
        "fully_convolutional": geometry.fully_convolutional,
        "ioconfig": ioconfig(arch, patches.mpp),
        "weights": {"file": WEIGHTS, "sha256": weights, **network},
        "data": _data(patches, out),
        "labels": label_provenance(patches.sources),
        "split": json.loads((out / "split.json").read_text(encoding="utf-8")),
        "training": training,
        "validation": scores,
        "versions": versions(),
    }
    write_ioconfig(out / IOCONFIG, arch, patches.mpp)
    files.write_json(out / MANIFEST, manifest)
    return manifest


def versions() -> dict[str, str]:
    """Of all that has a part in what a network computes."""
    found = {"stqp": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _data(patches: PatchFile, out: Path) -> dict[str, Any]:
    """What was learnt from: patches and nuclei by side, and fingerprints."""
    own = patches.path.resolve().parent == out.resolve()
    digest = hashlib.sha256()
    for array in (patches.origin, patches.source, patches.side):
        digest.update(array.tobytes())
    digest.update(json.dumps(patches.sources).encode())
    names = ["Unknown", *patches.classes]
    return {
        "file": patches.path.name if own else str(patches.path.resolve()),
        "patches": len(patches),
        "patches_by_side": {name: int((patches.side == number).sum()) for number, name in enumerate(SIDES)},
        "size": patches.size,
        "nuclei": {
            side: dict(zip(names, patches.counts[patches.side == number].sum(axis=0).tolist(), strict=True))
            for number, side in enumerate(SIDES)
        },
        **{key: patches.about[key] for key in ("options", "labels") if key in patches.about},
        "fingerprint": digest.hexdigest(),
        "source_fingerprint": patches.fingerprint,
        "sources": patches.sources,
    }


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
        raise InputError(f"{run} holds no {MANIFEST}, so it is no finished run of stqp train{more}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"architecture", "classes", "mpp", "split"}.difference(manifest)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not JSON ({error}); train again or restore it") from error
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; it was not written by stqp train")
    return manifest
