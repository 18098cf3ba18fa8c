"""stqp: spatial transcriptomics as free annotation for H&E, in QuPath."""

__version__ = "0.1.0"
