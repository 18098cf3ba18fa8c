"""TIAToolbox's registered HoVer-Nets: their names, classes, and where their weights lie."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stqp.errors import EnvironmentProblem

logger = logging.getLogger(__name__)
FOLDER_VARIABLE = "STQP_MODELS"
"""Environment variable that names a folder with TIAToolbox's weights."""

_SYNONYMS = {
    "non-neoplastic epithelial": "epithelial", "no-neo": "epithelial", "neopla": "neoplastic",
    "inflam": "inflammatory", "connec": "connective", "necros": "dead", "necrotic": "dead", "necrosis": "dead",
}  # fmt: skip


@dataclass(frozen=True)
class Registered:
    """A HoVer-Net that TIAToolbox has weights of.

    Attributes
    ----------
    name : str
        TIAToolbox's name of it.
    architecture : str
        ``fast`` or ``original``.
    classes : tuple of str, or None
        Without background; None for a network that does not type.
    mpp : float
    repository : str
        Where TIAToolbox fetches its weights from.
    """

    name: str
    architecture: str
    classes: tuple[str, ...] | None
    mpp: float
    repository: str

    @property
    def file_name(self) -> str:
        """Of its weights."""
        return f"{self.name}.pth"


def same_class(name: str) -> str:
    """Key under which two names of one class are equal, such as PanNuke's and the taxonomy's."""
    plain = " ".join(name.split()).casefold()
    return _SYNONYMS.get(plain, plain)


def registered_models() -> dict[str, Registered]:
    """TIAToolbox's HoVer-Nets by name, and by the name of their data alone (``pannuke``).

    Classes that the taxonomy has carry its names.
    """
    from tiatoolbox import rcParam

    from stqp.taxonomy import VISUAL_CLASSES

    ours = {same_class(c.name): c.name for c in VISUAL_CLASSES}
    result: dict[str, Registered] = {}
    known: Mapping[str, Any] = rcParam["pretrained_model_info"]
    for name, info in known.items():
        made = info.get("architecture", {})
        if made.get("class") != "hovernet.HoVerNet":
            continue
        names = made["kwargs"].get("nuc_type_dict")
        classes = None
        if names:
            theirs = [names[i] for i in sorted(names) if i != 0]
            classes = tuple(ours.get(same_class(c), c) for c in theirs)
        mpp = float(info["ioconfig"]["kwargs"]["input_resolutions"][0]["resolution"])
        model = Registered(name, made["kwargs"]["mode"], classes, mpp, info["hf_repo_id"])
        result[name] = model
        result.setdefault(name.rsplit("-", 1)[-1], model)
    return result


def weights_of(model: Registered, folder: Path | None = None, download: bool = True) -> Path:
    """File of a registered model's weights.

    It is looked for in `folder`, in the folder that the variable STQP_MODELS names, and in TIAToolbox's
    own; only where it is in none of them, it is fetched into the last.

    Parameters
    ----------
    model
        From `registered_models`.
    folder
        To look in first.
    download
        Whether it may be fetched.

    Raises
    ------
    EnvironmentProblem
        When it lies nowhere, and may not or cannot be fetched.
    """
    from tiatoolbox import rcParam

    own = Path(rcParam["TIATOOLBOX_HOME"]) / "models"
    named = os.environ.get(FOLDER_VARIABLE)
    for place in (folder, Path(named) if named else None, own):
        if place is not None and (place / model.file_name).is_file():
            return place / model.file_name
    reason = "downloading was not asked for"
    if download:
        try:
            return _fetch(model, own)
        except Exception as error:  # of the network, of its proxies, of the disk: all mean the same here
            reason = f"they could not be downloaded: {_first_line(error)}"
    raise EnvironmentProblem(
        f"the weights of {model.name} are not on this machine ({reason}); put {model.file_name} from "
        f"https://huggingface.co/{model.repository} into {own}, or into a folder that {FOLDER_VARIABLE} names"
    )


def _fetch(model: Registered, own: Path) -> Path:
    from huggingface_hub import hf_hub_download

    logger.info("fetching %s from huggingface.co/%s", model.file_name, model.repository)
    return Path(hf_hub_download(repo_id=model.repository, filename=model.file_name, local_dir=own))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
