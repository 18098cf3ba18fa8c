"""From the pixels of the H&E to those of the ST platform's own image."""

from stqp.alignment.matrix import IDENTITY, Alignment, read_alignment
from stqp.alignment.placing import Placement, place
from stqp.alignment.quality import AlignmentQuality, measure
from stqp.alignment.refine import Refinement, refine

__all__ = [
    "IDENTITY",
    "Alignment",
    "AlignmentQuality",
    "Placement",
    "Refinement",
    "measure",
    "place",
    "read_alignment",
    "refine",
]
