"""What must be the same for an interrupted run to go on: the network, the slide, the code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

import stqp
from stqp.inference.model import Predictor
from stqp.slides import Slide

_ENDS = 1 << 20  # bytes of a slide's beginning and end
_CODE = ("inference", "polygonise.py", "slides.py", "tissue.py")


def of_predictor(predictor: Predictor) -> dict[str, Any]:
    """Name, classes and weights of a network; one without weights is known by its name."""
    weights = ""
    network: Any = getattr(predictor, "network", None)
    if hasattr(network, "state_dict"):
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
        weights = digest.hexdigest()
    return {"name": predictor.name, "classes": [*predictor.classes], "mpp": predictor.mpp, "weights": weights}


def of_slide(slide: Slide) -> dict[str, Any]:
    """Size, time and the ends of a slide's file; not its place, so that a moved project goes on."""
    stat = slide.path.stat()
    if slide.path.is_dir():  # OME-Zarr: the names, sizes and times of its files stand for the ends of one
        parts = [(p.relative_to(slide.path).as_posix(), p.stat()) for p in sorted(slide.path.rglob("*")) if p.is_file()]
        text = repr([(name, s.st_size, s.st_mtime_ns) for name, s in parts])
        ends = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return {"bytes": 0, "modified": 0, "pixels": [slide.width, slide.height], "ends": ends}
    digest = hashlib.blake2b(digest_size=16)
    with slide.path.open("rb") as file:
        digest.update(file.read(_ENDS))
        if stat.st_size > _ENDS:
            file.seek(max(stat.st_size - _ENDS, _ENDS))
            digest.update(file.read(_ENDS))
    return {"bytes": stat.st_size, "modified": stat.st_mtime_ns, "pixels": [slide.width, slide.height],
            "ends": digest.hexdigest()}  # fmt: skip


def of_code() -> dict[str, Any]:
    """Version of stqp and the text of what makes nuclei of a slide."""
    digest = hashlib.blake2b(digest_size=16)
    root = Path(stqp.__file__).parent
    for name in _CODE:
        for path in sorted((root / name).glob("*.py")) if (root / name).is_dir() else [root / name]:
            if path.is_file():
                digest.update(path.read_bytes())
    return {"stqp": stqp.__version__, "text": digest.hexdigest()}
