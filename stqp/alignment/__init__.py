"""From the pixels of the H&E to those of the ST platform's own image."""

from stqp.alignment.matrix import IDENTITY, Alignment, read_alignment

__all__ = ["IDENTITY", "Alignment", "read_alignment"]
