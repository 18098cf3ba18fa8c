"""Slides: sizes, µm per pixel, and regions that sit where they should."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from stqp.errors import InputError
from stqp.slides import is_slide, open_slide


def gradient(height=300, width=421):
    """An image whose red is x / 2 and whose green is y / 2, so that every pixel tells where it lies."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x // 2, y // 2, np.full_like(x, 77)], -1).astype(np.uint8)


def write_pyramid(path, image, mpp=0.25, axes="YXS", tile=(128, 128)):
    levels = [image, np.ascontiguousarray(image[: image.shape[0] // 2 * 2 : 2, : image.shape[1] // 2 * 2 : 2])]
    data = [np.moveaxis(i, -1, 0) if axes == "CYX" else i for i in levels]
    options = {"tile": tile, "photometric": "rgb", "compression": "zlib"}
    if axes == "CYX":
        options = {"tile": tile, "photometric": "rgb", "planarconfig": "separate"}
    metadata = {"axes": axes, "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp}
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(data[0], subifds=1, metadata=metadata, **options)
        tif.write(data[1], subfiletype=1, **options)


@pytest.mark.parametrize("axes", ["YXS", "CYX"])
def test_ome_tiff(tmp_path, axes):
    image = gradient()
    write_pyramid(tmp_path / "s.ome.tif", image, axes=axes)
    with open_slide(tmp_path / "s.ome.tif") as slide:
        assert (slide.width, slide.height, slide.mpp, slide.backend) == (421, 300, 0.25, "bioformats")
        assert slide.downsamples == pytest.approx([1, 2], abs=0.01)
        assert (slide.read(100, 50, (64, 32)) == image[50:82, 100:164]).all()


def test_what_lies_outside_is_white(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png") as slide:
        region = slide.read(-10, 290, (30, 20))
        assert (region[10:] == 255).all() and (region[:, :10] == 255).all()
        assert (region[:10, 10:] == gradient()[290:300, :20]).all()


@pytest.mark.parametrize("downsample", [0.5, 1.25, 2.0, 2.7, 4.0, 8.0])
def test_every_scale_shows_the_same_place(tmp_path, downsample):
    """Waves of 64 px keep their phase to a tenth of a pixel; rounding of grey values does not change it."""
    period = 64
    y, x = np.mgrid[:800, :900] + 0.5
    waves = [128 + 100 * np.sin(2 * np.pi * v / period) for v in (x, y)]
    Image.fromarray(np.stack([*waves, x * 0], -1).round().astype(np.uint8)).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png") as slide:
        size = round(8 * period / downsample), round(4 * period / downsample)
        region = slide.read(101.0, 203.0, size, downsample).astype(float)
    for channel, (start, axis) in enumerate(((101.0, 0), (203.0, 1))):
        profile = region[..., channel].mean(axis=axis)
        centres = start + (np.arange(len(profile)) + 0.5) * downsample
        phase = np.angle(np.sum((profile - profile.mean()) * np.exp(-2j * np.pi * centres / period)) * 1j)
        assert abs(phase) * period / (2 * np.pi) < 0.1


@pytest.mark.parametrize("downsample", [2, 3, 4])
def test_whole_ratios_give_the_block_mean(tmp_path, downsample):
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png") as slide:
        region = slide.read(12, 24, (48, 36), downsample)
    cut = image[24 : 24 + 36 * downsample, 12 : 12 + 48 * downsample]
    blocks = cut.reshape(36, downsample, 48, downsample, 3).mean((1, 3))
    assert np.abs(region - blocks).max() <= 1


def test_mpp_in_other_units_and_by_the_user(tmp_path):
    path = tmp_path / "s.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 500.0}
    metadata["PhysicalSizeYUnit"] = "nm"
    tifffile.imwrite(path, gradient(), photometric="rgb", metadata=metadata, ome=True)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
    with open_slide(path, mpp=0.3) as slide:
        assert slide.mpp == 0.3
    tifffile.imwrite(tmp_path / "plain.tif", gradient(), photometric="rgb")
    with open_slide(tmp_path / "plain.tif") as slide:
        assert slide.mpp is None
    with_tags = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "tags.tif", gradient(), photometric="rgb", **with_tags)
    with open_slide(tmp_path / "tags.tif") as slide:
        assert slide.mpp == pytest.approx(0.5)


def test_thumbnail(tmp_path):
    write_pyramid(tmp_path / "s.ome.tif", gradient())
    with open_slide(tmp_path / "s.ome.tif") as slide:
        small = slide.thumbnail(100, 100)
        assert small.shape == (71, 100, 3) and abs(int(small[35, 50, 0]) - 105) < 5


def test_what_is_no_slide(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_slide(tmp_path / "no.tif")
    with pytest.raises(InputError, match="folder"):
        open_slide(tmp_path)
    (tmp_path / "text.tif").write_text("not an image")
    with pytest.raises(InputError, match=r"text\.tif"):
        open_slide(tmp_path / "text.tif")
    write_pyramid(tmp_path / "s.ome.tif", gradient())
    content = (tmp_path / "s.ome.tif").read_bytes()
    (tmp_path / "half.ome.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"half\.ome\.tif"):
        open_slide(tmp_path / "half.ome.tif")
    tifffile.imwrite(tmp_path / "dapi.tif", np.zeros((64, 64), np.uint16))
    with pytest.raises(InputError, match="fluorescence"):
        open_slide(tmp_path / "dapi.tif")
    assert is_slide(tmp_path / "x.SVS") and not is_slide(tmp_path / "x.csv")


def test_openslide_slide(real_data):
    with open_slide(real_data / "wsi" / "CMU-1-Small-Region.svs") as slide:
        assert (slide.width, slide.height, slide.backend) == (2220, 2967, "openslide")
        assert slide.mpp == pytest.approx(0.499)
        small, large = slide.read(500, 700, (100, 80), 2.0), slide.read(500, 700, (200, 160), 1.0)
        blocks = large.reshape(80, 2, 100, 2, 3).mean((1, 3))
        assert np.abs(small - blocks).max() <= 1


def write_ngff(path, pixels, mpp):
    """OME-Zarr 0.4 of one level, as TIAToolbox reads it."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("0", shape=pixels.shape, chunks=(256, 256, 3), dtype="uint8")[...] = pixels
    scale = {"type": "scale", "scale": [mpp, mpp, 1.0]}
    space = {"type": "space", "unit": "micrometer"}
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    group.attrs.update({
        "multiscales": [{
            "version": "0.4",
            "axes": [{"name": "y", **space}, {"name": "x", **space}, {"name": "c", "type": "channel"}],
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }],
        "omero": {
            "name": "s", "id": 1, "version": "0.4", "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"},
            "channels": [{"color": c, "window": window, "label": c} for c in ("FF0000", "00FF00", "0000FF")],
        },
    })  # fmt: skip


def test_what_only_tiatoolbox_reads_is_read_by_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (301, 403, 3), dtype=np.uint8)
    write_ngff(tmp_path / "s.zarr", pixels, 0.5)
    with open_slide(tmp_path / "s.zarr") as slide:
        assert (slide.width, slide.height, slide.mpp) == (403, 301, 0.5)
        np.testing.assert_array_equal(slide.read(100, 50, (64, 32)), pixels[50:82, 100:164])
        assert (slide.read(390, 290, (20, 20))[12:] == 255).all()
    (tmp_path / "broken.zarr").mkdir()
    for name in ("broken.zarr", "broken.tif"):
        if name.endswith("tif"):
            (tmp_path / name).write_bytes(b"no image")
        with pytest.raises(InputError, match=f"{name} cannot be read as an image.*is it whole"):
            open_slide(tmp_path / name)
