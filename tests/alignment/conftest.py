"""A larger made-up slide, and its nuclei where they belong."""

from dataclasses import dataclass

import numpy as np
import pytest

from stqp.alignment import read_alignment
from stqp.polygons import Polygons
from stqp.slides import Slide, open_slide
from stqp.sources.xenium import XeniumBundle
from stqp.synthetic import SyntheticSample, make_sample


@dataclass(frozen=True)
class Scene:
    sample: SyntheticSample
    slide: Slide
    um: Polygons
    nuclei: Polygons
    mpp: float
    pixel_size: float

    def displaced(self, way):
        """Nuclei moved by way(points in µm) -> µm."""
        at = self.nuclei.coords
        return Polygons(at + way(at * self.mpp) / self.mpp, self.nuclei.ring_offsets, self.nuclei.geom_offsets)

    def miss(self, polygons):
        """Distance of each vertex from where it belongs, µm."""
        return np.hypot(*(polygons.coords - self.nuclei.coords).T) * self.mpp


@pytest.fixture(scope="package")
def scene(tmp_path_factory):
    sample = make_sample(tmp_path_factory.mktemp("scene"), seed=11, size=(3300, 2500))
    bundle = XeniumBundle.open(sample.outs)
    um = bundle.read_nuclei(bundle.read_cells().ids).polygons
    nuclei = um.transform(read_alignment(sample.alignment).um_to_he(bundle.pixel_size))
    with open_slide(sample.he) as slide:
        yield Scene(sample, slide, um, nuclei, sample.mpp, bundle.pixel_size)
