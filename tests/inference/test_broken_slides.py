"""Slides that end early, or are broken in the middle: one sentence each, and the others go on."""

import shutil

import numpy as np
import pytest
from perfect_maps import ColourNetwork, grid_of_nuclei, paint

from stqp.errors import InputError
from stqp.inference.engine import predict_slide
from stqp.slides import open_slide


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    import tifffile

    path = tmp_path_factory.mktemp("whole") / "slide.tif"
    image = paint(grid_of_nuclei(1000, 25), np.arange(625) % 3 + 1)
    with tifffile.TiffWriter(path) as file:
        options = {"tile": (128, 128), "compression": "zlib", "photometric": "rgb"}
        file.write(image, subifds=1, resolution=(40000, 40000), resolutionunit="CENTIMETER", **options)
        file.write(image[::4, ::4], subfiletype=1, **options)
    return path


def tile_places(path):
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def predict(path):
    with open_slide(path) as slide:
        return predict_slide(slide, ColourNetwork(), tissue=False)


def test_the_whole_one_is_read(whole):
    assert len(predict(whole)) == 625


@pytest.mark.parametrize("part", [0.001, 0.3, 0.6, 0.97])
def test_a_truncated_slide_is_said(whole, tmp_path, part):
    path = tmp_path / "slide.tif"
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(InputError, match=r"slide\.tif cannot be read .*is it whole\?"):
        predict(path)


@pytest.mark.parametrize("tile", [0, 27, 63])
@pytest.mark.parametrize("kind", ["noise", "zeros"])
def test_a_slide_that_is_broken_in_the_middle_is_said(whole, tmp_path, tile, kind):
    path = tmp_path / "slide.tif"
    shutil.copy(whole, path)
    offset, size = tile_places(path)[tile]
    rng = np.random.default_rng(0)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(rng.bytes(size) if kind == "noise" else bytes(size))
    with pytest.raises(InputError, match=r"slide\.tif cannot be read .*is it whole\?"):
        predict(path)


@pytest.mark.parametrize("part", [0.2, 0.7, 0.95])
def test_a_truncated_aperio_slide_is_said(real_data, tmp_path, part):
    source = real_data / "wsi" / "CMU-1-Small-Region.svs"
    content = source.read_bytes()
    path = tmp_path / "slide.svs"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(InputError, match=r"slide\.svs .*is it whole\?"):
        predict(path)


def test_an_aperio_slide_with_noise_in_the_middle_is_said(real_data, tmp_path):
    path = tmp_path / "slide.svs"
    shutil.copy(real_data / "wsi" / "CMU-1-Small-Region.svs", path)
    offset, size = tile_places(path)[30]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.random.default_rng(0).bytes(size))
    with pytest.raises(InputError, match=r"slide\.svs .*is it whole\?"):
        predict(path)
