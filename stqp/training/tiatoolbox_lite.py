"""`lite` as a subclass of TIAToolbox's HoVerNet, so that its engines and post-processing run it."""

from typing import Any

from tiatoolbox.models.architecture.hovernet import HoVerNet
from tiatoolbox.models.models_abc import ModelABC

from stqp.training.lite import LiteLayers


class HoVerNetLite(LiteLayers, HoVerNet):
    """The narrow member of the family; everything but layers and forward pass is TIAToolbox's own.

    Parameters
    ----------
    num_types
        Number of classes, background included; None for no typing.
    nuc_type_dict
        Class number to name.
    """

    def __init__(self, num_types: int | None = None, nuc_type_dict: dict[int, str] | None = None, **_: Any):
        ModelABC.__init__(self)
        self.mode = "fast"  # the geometry and post-processing of this mode hold
        self.num_types = num_types
        self.nuc_type_dict = nuc_type_dict
        self.tasks = ["nuclei_segmentation"]
        self.class_dict = {self.tasks[0]: nuc_type_dict}
        self._build(num_types)
