"""A seeded generator of whole samples, for the demo, the tests and the documentation."""

from stqp.synthetic.sample import SyntheticSample, make_sample

__all__ = ["SyntheticSample", "make_sample"]
