"""From a Xenium run, its H&E and labels to a spatial sample; nothing is written here."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stqp.alignment import place, read_alignment
from stqp.alignment.placing import STAIN_CONTRAST, check_options
from stqp.alignment.refine import LIMIT_UM
from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.record import RunRecord
from stqp.sample import CellTable, NucleusTable, SpatialSample
from stqp.slides import open_slide
from stqp.sources.filters import Filters
from stqp.sources.labels import read_labels, to_classes
from stqp.sources.matching import assign
from stqp.sources.regions import Region
from stqp.sources.selection import select
from stqp.sources.xenium import Outlines, XeniumBundle, XeniumCells, slug
from stqp.sources.xenium_nuclei import check_counts, check_places
from stqp.taxonomy import read_class_map

logger = logging.getLogger(__name__)


def read_xenium_sample(
    outs: str | Path,
    he: str | Path,
    alignment: str | Path,
    labels: str | Path | None = None,
    label_key: str | None = None,
    class_map: str | Path | None = None,
    name: str | None = None,
    mpp: float | None = None,
    record: RunRecord | None = None,
    nuclei_source: str = "polygons",
    alignment_direction: str = "he-to-morphology",
    keypoint_fit: str = "affine",
    qc: bool = True,
    refine: str = "off",
    refine_limit: float = LIMIT_UM,
    region: Region | None = None,
    filters: Filters | None = None,
) -> SpatialSample:
    """Read a sample.

    Parameters
    ----------
    outs
        The Xenium output folder.
    he
        The H&E image.
    alignment
        See `stqp.alignment.read_alignment`.
    labels, label_key
        See `stqp.sources.labels.read_labels`.
    class_map
        csv: label, class.
    name
        Of the sample; the region's own when None.
    mpp
        µm per pixel of the H&E, in place of what the file says.
    record
        Takes the counts, what was skipped and the warnings.
    nuclei_source : {"polygons", "masks"}
        The simplified outlines of the run's tables, or the masks of its segmentation, outlined pixel by pixel.
    alignment_direction, qc, refine, refine_limit
        See `stqp.alignment.place`.
    keypoint_fit
        As `model` of `stqp.alignment.read_alignment`.
    region
        The part of the run to read; None is all of it.
    filters
        Which nuclei and labels are good enough; None is `Filters` as it stands.

    Raises
    ------
    InputError
        When a file is missing, broken, or does not belong to the others.
    UsageError
        When arguments do not go together.
    """
    record = record or RunRecord("read-xenium", {})
    if labels is None and (label_key is not None or class_map is not None):
        raise UsageError("--label-key and --class-map say how to read labels; give --labels, too")
    if mpp is not None and not 0 < mpp < 100:
        raise UsageError(f"expected µm per pixel between 0 and 100, found {mpp:g}")
    bundle = XeniumBundle.open(outs)
    check_options(alignment_direction, refine, refine_limit)
    aligned = read_alignment(alignment, keypoint_fit)
    mapping = None if class_map is None else read_class_map(Path(class_map))
    he = Path(he)
    with open_slide(he, mpp) as slide:
        size, slide_mpp = (slide.width, slide.height), slide.mpp
    if alignment_direction == "he-to-morphology":
        aligned.mpp(bundle.pixel_size, slide_mpp, he)  # before the long work
    if bundle.newer_than_known:
        record.warn(f"the run was made by {bundle.version}, newer than any that stqp was tried on")
    given = None if labels is None else read_labels(labels, label_key)

    cells = bundle.read_cells()
    nuclei = bundle.read_nuclei(cells.ids, nuclei_source, cells.nucleus_count)
    outlines = bundle.read_cell_outlines(cells.ids)
    check_places(nuclei, cells, "nuclei", bundle.path)
    if outlines is not None:
        check_places(outlines, cells, "cell outlines", bundle.path)
    counts = bundle.read_counts(cells.ids)
    check_counts(counts, cells, bundle.path)
    record.count("run", f"Xenium, {bundle.version}, pixel {bundle.pixel_size:g} µm")
    with open_slide(he, mpp) as slide:
        placed = place(
            aligned, bundle.pixel_size, slide, nuclei.polygons, record, alignment_direction, qc, refine, refine_limit
        )
        polygons = placed.polygons(nuclei.polygons)
        area, transcripts = nuclei.polygons.area(), np.asarray(counts.matrix.sum(axis=1)).ravel().astype(np.int64)
        measured = placed.measurements()
        chosen = None if region is None else placed.polygons(region.polygons) if region.in_um else region.polygons
        kept, untyped = select(
            polygons,
            slide,
            placed.mpp,
            record,
            filters or Filters(),
            area,
            transcripts[nuclei.cell],
            counts.controls[nuclei.cell],
            chosen,
            measured.get(STAIN_CONTRAST),
        )
    agreed = placed.mpp
    if slide_mpp is None:
        record.warn(f"{he} does not state its pixel size; took {agreed:.4f} µm from the alignment")
    coverage = [placed.polygons(_covered(nuclei, outlines, cells)).coords]
    if chosen is not None:
        coverage = _within(coverage, chosen)
    for skipped in (nuclei.skipped, {} if outlines is None else outlines.skipped, counts.skipped):
        for reason, number in skipped.items():
            record.skip(reason, number)
    record.skip("centres of cells that are no number (left empty)", int(np.isnan(cells.center[:, 0]).sum()))
    of_cell = nuclei.cell[kept]

    cell_labels, nucleus_labels = np.full(len(cells.ids), None, object), np.full(len(kept), None, object)
    confidence = np.full(len(kept), np.nan)
    if given is not None:
        assigned = assign(given, cells.ids, of_cell, nuclei.label_id[kept])
        cell_labels, nucleus_labels, confidence = assigned.cells, assigned.nuclei, assigned.confidence
        for reason, number in assigned.skipped.items():
            record.skip(reason, number)
        for warning in assigned.warnings:
            record.warn(warning)
    nucleus_labels[untyped], confidence[untyped] = None, np.nan
    classes, lacking = to_classes(nucleus_labels, mapping)
    cell_classes, _ = to_classes(cell_labels, mapping)
    for label, number in lacking.items():
        record.skip(f"nuclei with the label {label!r} that the class map lacks (now Unknown)", number)
    doubted = np.zeros(len(cells.ids), bool)
    doubted[of_cell[untyped]] = True
    n_nuclei = np.bincount(of_cell, minlength=len(cells.ids)).astype(np.int64)

    record.count("slide", f"{he.name}, {size[0]} x {size[1]} px at {agreed:.4g} µm")
    for lack in bundle.lacks:
        record.count(*lack.split(": ", 1))
    for noted in (nuclei.noted, {} if outlines is None else outlines.noted):
        for what, number in noted.items():
            record.count(what, number)
    for note in counts.notes:
        record.warn(note)
    record.count("cells", len(cells.ids))
    record.count("genes", len(counts.genes))
    record.count("transcripts", int(transcripts.sum()))
    record.count("control counts", int(counts.controls.sum()))
    record.count("nuclei", len(kept))
    record.count("cells without a nucleus", int((n_nuclei == 0).sum()))
    record.count("cells with several nuclei", int((n_nuclei > 1).sum()))
    if given is not None:
        unlabelled = int(sum(label is None for label in nucleus_labels.tolist()))
        if unlabelled:
            record.count("nuclei without a label (Unknown)", unlabelled)
    for path in [*bundle.files_read, he, *(Path(p) for p in (labels, class_map) if p is not None)]:
        record.add_input(path)
    if aligned.is_file:
        record.add_input(Path(alignment))

    return SpatialSample(
        id=slug(name) if name else bundle.sample_id,
        name=name or bundle.name,
        source=f"Xenium {bundle.version}",
        slide=he.resolve(),
        size=size,
        mpp=agreed,
        alignment=placed.aligned.matrix,
        to_he=placed.refined_to_he,
        coverage=coverage,
        nuclei=NucleusTable(
            polygons=polygons if len(kept) == len(polygons) else polygons.take(kept),
            cell=of_cell,
            cell_id=cells.ids[of_cell],
            position=nuclei.position[kept],
            area=area[kept],
            transcripts=transcripts[of_cell],
            labels=nucleus_labels,
            classes=classes,
            confidence=confidence,
        ),
        cells=CellTable(
            ids=cells.ids,
            center=placed.points(cells.center),
            transcripts=transcripts,
            controls=counts.controls,
            n_nuclei=n_nuclei,
            area=cells.area,
            labels=cell_labels,
            classes=cell_classes,
            polygons=None if outlines is None else placed.polygons(_by_cell(outlines, len(cells.ids))),
        ),
        counts=counts.matrix,
        genes=counts.genes,
        gene_ids=counts.gene_ids,
        extra={
            "control_kinds": counts.control_kinds,
            "untyped_cells": doubted,
            "proteins": counts.proteins,
            "protein_names": counts.protein_names,
            "measurements": {name: values[kept] for name, values in measured.items()},
            "refinement": placed.describe(),
        },
    )


def _covered(nuclei: Outlines, outlines: Outlines | None, cells: XeniumCells) -> Polygons:
    """Rectangle, in the run's µm, around everything that the run segmented."""
    points = [nuclei.polygons.coords, cells.center[np.isfinite(cells.center).all(axis=1)]]
    if outlines is not None:
        points.append(outlines.polygons.coords)
    points = [xy for xy in points if len(xy)]
    x0, y0, x1, y1 = (of([of(xy[:, axis]) for xy in points]) for of in (np.min, np.max) for axis in (0, 1))
    return Polygons.from_rings([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], [0, 4])


def _within(coverage: list[NDArray[np.float64]], region: Polygons) -> list[NDArray[np.float64]]:
    """Rings of what is covered and in the region."""
    import shapely

    covered = shapely.union_all([shapely.Polygon(ring) for ring in coverage])
    whole = shapely.union_all(shapely.make_valid(region.to_shapely()))
    pieces = list(shapely.get_parts(shapely.intersection(covered, whole)))
    simple = []
    while pieces:
        piece = pieces.pop()
        if piece.geom_type != "Polygon" or not piece.area:
            continue
        if not len(piece.interiors):
            simple.append(piece)
            continue
        # coverage has no holes: the piece is cut through one
        x0, y0, x1, y1 = piece.bounds
        cut = shapely.Polygon(piece.interiors[0]).centroid.x
        for side in (shapely.box(x0, y0, cut, y1), shapely.box(cut, y0, x1, y1)):
            pieces += shapely.get_parts(shapely.intersection(piece, side)).tolist()
    both = Polygons.from_shapely(simple)
    return [both.coords[a:b] for a, b in itertools.pairwise(both.ring_offsets)]


def _by_cell(outlines: Outlines, cells: int) -> Polygons:
    """First outline of each cell, empty where it has none."""
    first = np.flatnonzero(outlines.position == 0)
    order = first[np.argsort(outlines.cell[first], kind="stable")]
    ordered = outlines.polygons
    if not np.array_equal(order, np.arange(len(ordered))):
        ordered = ordered.take(order)
    rings = np.zeros(cells, np.int64)
    rings[outlines.cell[first]] = 1
    return Polygons(ordered.coords, ordered.ring_offsets, np.r_[0, np.cumsum(rings)].astype(np.int64))
