"""Outlines are drawn where nuclei are, in the colours of their classes."""

import numpy as np
from PIL import Image

from stqp.polygons import Polygons
from stqp.report.overlay import overlay, panels, save_png
from stqp.slides import open_slide
from stqp.taxonomy import color_of


def test_an_outline_sits_on_its_nucleus(tmp_path):
    image = np.full((100, 120, 3), 255, np.uint8)
    image[40:60, 30:70] = 90
    Image.fromarray(image).save(tmp_path / "s.png")
    box = Polygons.from_rings([[30, 40], [70, 40], [70, 60], [30, 60]], [0, 4])
    for downsample in (1.0, 0.25):
        with open_slide(tmp_path / "s.png") as slide:
            drawn = overlay(slide, box, ["Dead"], (20, 30, 90, 80), downsample, width=1)
        red = (np.ptp(drawn.astype(int), axis=-1) > np.ptp(color_of("Dead")) / 3).nonzero()
        top, left = (red[0].min() + 0.5) * downsample + 30, (red[1].min() + 0.5) * downsample + 20
        bottom, right = (red[0].max() + 0.5) * downsample + 30, (red[1].max() + 0.5) * downsample + 20
        assert np.allclose([left, top, right, bottom], [30, 40, 70, 60], atol=1.01 * downsample)


def test_panels_keep_their_pictures(tmp_path):
    pictures = [np.full((50, 60, 3), v, np.uint8) for v in (10, 200)]
    sheet = panels(pictures, ["a", "b"], {"Dead": (1, 2, 3)}, gap=4)
    assert sheet.shape == (50 + 68, 124, 3)
    assert (sheet[34:84, :60] == 10).all() and (sheet[34:84, 64:] == 200).all()
    save_png(tmp_path / "x.png", sheet)
    assert (np.asarray(Image.open(tmp_path / "x.png")) == sheet).all()
