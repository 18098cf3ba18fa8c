"""A whole made-up sample, on disk as the instruments and their users would leave it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp import files
from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.slides import RGBImage
from stqp.synthetic import bundle, counts, drawing, layout
from stqp.synthetic.versions import made
from stqp.taxonomy import VISUAL_CLASSES

PIXEL_UM = 0.2125  # of the morphology image
MARGIN_PX = 250.0  # of the morphology image, around the H&E


@dataclass(frozen=True)
class SyntheticSample:
    """Paths of a made-up sample, and its truth in numbers.

    Attributes
    ----------
    outs
        The Xenium bundle.
    he, alignment
        The H&E image and the 3x3 csv that maps its pixels to the bundle's morphology pixels.
    labels
        csv: cell_id, label (fine types; about 1 % are "unassigned").
    class_map
        csv: label, class.
    nuclei
        parquet: cell_id, nucleus, class, fine, he_x, he_y, instance, covered.
    outlines
        npz: coords (vertices, 2) float64 in H&E px, ring_offsets (n + 1,), cell_id (n,), instance (n,): the run's
        nuclei as the bundle has them, before they were turned, scaled and rounded.
    instances
        npz: inst (height, width) int32; ids (n,) int32; types (n,) uint8, the ids of the visual classes.
    """

    folder: Path
    outs: Path
    he: Path
    alignment: Path
    labels: Path
    class_map: Path
    nuclei: Path
    outlines: Path
    instances: Path
    mpp: float
    size: tuple[int, int]
    n_nuclei: int
    n_cells: int


def make_sample(
    folder: str | Path,
    seed: int = 0,
    size: tuple[int, int] = (2048, 2048),
    mpp: float = 0.25,
    rotation: float = -89.5,
    covered: float = 1.0,
    stain: float = 1.0,
    name: str = "synthetic",
    version: str = "2.0",
    mirrored: bool = False,
) -> SyntheticSample:
    """Make a sample: H&E, Xenium bundle, alignment, labels and the truth.

    Parameters
    ----------
    folder
        Where it goes; created. Files there of the same names are replaced.
    seed
        The same seed gives the same sample.
    size
        Width and height of the H&E in px; any, also odd, from 256.
    mpp
        µm per pixel of the H&E.
    rotation
        Degrees by which the morphology image is turned against the H&E.
    covered
        Share of the H&E's width, from the left, that the run covered; what lies to the right has nuclei in
        the image and in the truth, and none in the bundle.
    stain
        How far the stains' colours and strengths stray from the usual; 0 for not at all.
    name
        Used for the file names and as the region's name.
    version : {"1.0", "1.3", "1.9", "2.0-early", "2.0", "3.0", "4.0", "ranger"}
        Version of the analysis that the bundle seems to be from.
    mirrored
        Whether the H&E lies face down.

    Returns
    -------
    SyntheticSample
        Paths of everything written.

    Raises
    ------
    UsageError
        When the size, the covered share or the version cannot be made.
    """
    how = made(version)
    width, height = size
    if min(size) < 256 or not 0 < covered <= 1 or mpp <= 0:
        raise UsageError(
            f"a synthetic sample needs at least 256x256 px, 0 < covered <= 1 and mpp > 0; "
            f"found {width}x{height}, {covered}, {mpp}"
        )
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    tissue = layout.make_tissue(rng, width * mpp, height * mpp)
    nuclei = layout.make_nuclei(rng, tissue)
    image, instances = drawing.draw(rng, tissue, nuclei, size, mpp, stain)
    matrix, morphology = _alignment(size, mpp, rotation, mirrored)
    cells = bundle.make_cells(rng, nuclei, tissue, covered, how.layout.several_nuclei, how.ids == "integers")
    fine = counts.choose_fine_types(rng, cells.kind)
    expression = counts.make_counts(rng, fine, cells.size, _controls(version, how.layout.controls), how.proteins)
    labels = fine.copy()
    labels[rng.choice(len(fine), max(2, len(fine) // 100), replace=False)] = counts.UNASSIGNED

    sample = SyntheticSample(
        folder=folder,
        outs=folder / "outs",
        he=folder / "he" / f"{name}_he_image.ome.tif",
        alignment=folder / "he" / f"{name}_he_imagealignment.csv",
        labels=folder / "labels.csv",
        class_map=folder / "class_map.csv",
        nuclei=folder / "truth" / "nuclei.parquet",
        outlines=folder / "truth" / "outlines.npz",
        instances=folder / "truth" / "instances.npz",
        mpp=mpp,
        size=size,
        n_nuclei=int((cells.of_nucleus >= 0).sum()),
        n_cells=len(cells.ids),
    )
    own = np.flatnonzero(cells.of_nucleus >= 0)
    own = own[np.lexsort((cells.position[own], cells.of_nucleus[own]))]  # nuclei of a cell follow each other
    outlines = _thinned(nuclei.polygons.take(own), how.layout.ring - 1)
    of = cells.of_nucleus[own]
    to_um = np.diag([PIXEL_UM, PIXEL_UM, 1.0]) @ matrix @ np.diag([1 / mpp, 1 / mpp, 1.0])  # from the tissue's
    bundle.write_bundle(sample.outs, outlines, cells, of, expression, to_um, PIXEL_UM, morphology, name, how)
    write_pyramid(sample.he, image, mpp)
    files.write_bytes(
        sample.alignment, "".join(",".join(repr(float(v)) for v in row) + "\n" for row in matrix).encode()
    )
    rows = ["cell_id,label", *(f"{c},{label}" for c, label in zip(cells.ids, labels, strict=True))]
    files.write_bytes(sample.labels, ("\n".join(rows) + "\n").encode())
    rows = [
        "label,class",
        *(f"{k},{v[0]}" for k, v in counts.FINE_TYPES.items()),
        f"{counts.UNASSIGNED},Unknown",
    ]
    files.write_bytes(sample.class_map, ("\n".join(rows) + "\n").encode())
    _write_truth(sample, nuclei, cells, fine, instances)
    with files.replacing(sample.outlines) as temporary, temporary.open("wb") as file:
        he_px = outlines.scale(1 / mpp)
        np.savez_compressed(
            file, coords=he_px.coords, ring_offsets=he_px.ring_offsets, cell_id=cells.ids[of], instance=own + 1
        )
    return sample


def _controls(version: str, controls: tuple[str, ...]) -> tuple[str, ...]:
    """Types of control features; the sample of the default version stays what it was."""
    return tuple(counts.CONTROLS) if version in ("2.0", "2.0-early") else controls


def _thinned(polygons: Polygons, vertices: int) -> Polygons:
    """Outlines of at most so many vertices, every so manyth left."""
    most = int(np.diff(polygons.ring_offsets).max(initial=1))
    step = -(-most // vertices)
    if step == 1:
        return polygons
    place = np.arange(len(polygons.coords)) - np.repeat(polygons.ring_offsets[:-1], np.diff(polygons.ring_offsets))
    keep = place % step == 0
    offsets = np.r_[0, np.cumsum(np.bincount(polygons.vertex_owner[keep], minlength=len(polygons)))]
    return Polygons.from_rings(polygons.coords[keep], offsets)


def _alignment(
    size: tuple[int, int], mpp: float, rotation: float, mirrored: bool
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """H&E px to morphology px, shifted so that everything has positive coordinates; and the morphology's size."""
    scale, angle = mpp / PIXEL_UM, np.deg2rad(rotation)
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        matrix[:2, 0] *= -1
    corners = np.array([[0, 0], [size[0], 0], [0, size[1]], size]) @ matrix[:2, :2].T
    matrix[:2, 2] = MARGIN_PX - corners.min(axis=0)
    width, height = np.ceil(np.ptp(corners, axis=0) + 2 * MARGIN_PX).astype(int)
    return matrix, (int(width), int(height))


def write_pyramid(path: Path, image: RGBImage, mpp: float) -> None:
    """Write an RGB image as a tiled pyramid in OME-TIFF, JPEG compressed."""
    import cv2
    import tifffile

    levels = [image]
    while max(levels[-1].shape[:2]) > 512:
        h, w = levels[-1].shape[:2]
        levels.append(np.asarray(cv2.resize(levels[-1], ((w + 1) // 2, (h + 1) // 2), interpolation=cv2.INTER_AREA)))
    options = {
        "photometric": "rgb",
        "tile": (256, 256),
        "compression": "jpeg",
        "compressionargs": {"level": 90},
        "maxworkers": 1,
    }
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
    }
    with files.replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as tif:
        tif.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **options)
        for level in levels[1:]:
            tif.write(level, subfiletype=1, **options)


def _write_truth(
    sample: SyntheticSample,
    nuclei: layout.Nuclei,
    cells: bundle.Cells,
    fine: NDArray[np.str_],
    instances: NDArray[np.int32],
) -> None:
    """Class, fine type and place of every nucleus of the image, covered by the run or not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    covered = cells.of_nucleus >= 0
    owner = np.where(covered, cells.of_nucleus, 0)
    center = nuclei.polygons.centroid() / sample.mpp
    n = len(covered)
    table = pa.table(
        {
            "cell_id": np.where(covered, cells.ids[owner], ""),
            "nucleus": cells.position,
            "class": nuclei.kind,
            "fine": np.where(covered, fine[owner], ""),
            "he_x": center[:, 0],
            "he_y": center[:, 1],
            "instance": np.arange(1, n + 1),
            "covered": covered,
        }
    )
    with files.replacing(sample.nuclei) as temporary:
        pq.write_table(table, temporary)
    ids = {c.name: c.id for c in VISUAL_CLASSES}
    types = np.array([ids[str(k)] for k in nuclei.kind], dtype=np.uint8)
    with files.replacing(sample.instances) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, inst=instances, ids=np.arange(1, n + 1, dtype=np.int32), types=types)
