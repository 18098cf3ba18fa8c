"""Where two predictions of an image differ: a map, a page and a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stqp import files
from stqp.errors import InputError
from stqp.evaluation.compare import CLASS, KINDS, ONLY_A, ONLY_B, OUTLINE, RADIUS_UM, Comparison, compare
from stqp.evaluation.predictions import read_pair
from stqp.record import RunRecord
from stqp.report import page
from stqp.report.overlay import overlay
from stqp.slides import ArraySlide, RGBImage, Slide, open_slide
from stqp.taxonomy import RGB, color_of

COLORS: dict[str, RGB] = {
    ONLY_A: (214, 90, 0), ONLY_B: (0, 98, 178), CLASS: (150, 30, 150), OUTLINE: (120, 120, 120),
}  # fmt: skip
_SIDE = 1400  # px of the map, at most
_FIELD_UM = 200.0
_CROP_UM = 60.0
_CROPS = 8
_CROP_PX = 420
_FEW = 4.0  # nuclei of a field beside those that differ; a field of one nucleus would be all different
_RED, _INK = (200, 20, 30), (40, 40, 40)


def compare_predictions(
    first: str,
    second: str,
    out: Path,
    *,
    models: tuple[str | None, str | None] = (None, None),
    mpp: float | None = None,
    slide: Path | None = None,
) -> RunRecord:
    """Compare two predictions and write what differs: ``compare.csv``, ``.png``, ``.html`` and ``.json``.

    Parameters
    ----------
    first, second, models
        As `stqp.evaluation.predictions.read_pair`.
    out
        Folder for the files.
    mpp
        µm per px, for predictions that do not say; 0.25 when nothing else is known.
    slide
        The image, for pictures; that of the project when None.

    Returns
    -------
    RunRecord
        ``results`` has the counts and the files.

    Raises
    ------
    InputError
        When a prediction cannot be read, or the two are of images of other resolutions.
    """
    record = RunRecord("compare", {
        "a": first, "b": second, "out": out, "models": [*models], "mpp": mpp, "slide": slide,
    })  # fmt: skip
    a, b = read_pair(first, second, models)
    said = [p.mpp for p in (a, b) if p.mpp]
    if len(said) == 2 and abs(said[0] / said[1] - 1) > 0.02:
        raise InputError(
            f"{a.label} is of an image with {said[0]:g} µm per pixel, but {b.label} of one with {said[1]:g}"
        )
    if not said and mpp is None:
        record.warn(f"neither prediction says its µm per pixel, 0.25 is taken ({RADIUS_UM:g} µm match); see --mpp")
    found = compare(a, b, mpp or (said[0] if said else 0.25))
    summary, frame = found.summary(), found.differences()
    image = slide or next((p.slide for p in (a, b) if p.slide is not None and p.slide.is_file()), None)
    colors = {name: {**b.colors, **a.colors}.get(name, color_of(name)) for name in found.classes}
    names = {kind: out / f"compare.{kind}" for kind in ("csv", "png", "html", "json")}
    with _opened(image, found) as opened:
        drawn = draw_map(opened, found)
        write_html(names["html"], found, drawn, opened, colors, pictures=image is not None)
    files.write_bytes(names["csv"], frame.to_csv(index=False, lineterminator="\n").encode())
    files.write_bytes(names["png"], page.png_bytes(drawn))
    record.count("nuclei in A", len(a))
    record.count("nuclei in B", len(b))
    record.count(
        "matched",
        f"{summary['matched']:,} ({found.by_overlap:,} by overlap; centres alone would match {found.by_centre:,})",
    )
    for kind in KINDS:
        record.count(kind, int((frame["what"] == kind).sum()))
    record.results.update(summary, files={k: str(p) for k, p in names.items()})
    record.write(names["json"])
    return record


def _opened(image: Path | None, found: Comparison) -> Slide:
    """The slide, or a white sheet as large as the nuclei reach."""
    if image is not None:
        return open_slide(image)
    corners = [p.polygons.bounds()[:, 2:].max(axis=0) for p in (found.a, found.b) if len(p)]
    width, height = np.ceil(np.max(corners, axis=0)).astype(int) if corners else (100, 100)
    # one white pixel, seen as a sheet of any size
    white = np.broadcast_to(np.uint8(255), (int(height), int(width), 3))
    return ArraySlide(white, Path("white"), found.mpp)


def draw_map(slide: Slide, found: Comparison) -> RGBImage:
    """Draw the slide, pale, with how much the nuclei of each field differ, and a dot for each that does."""
    import cv2

    scale = min(_SIDE / max(slide.width, slide.height), 4.0)
    size = max(1, round(slide.width * scale)), max(1, round(slide.height * scale))
    background = slide.read(0, 0, size, 1 / scale)
    canvas = cv2.addWeighted(background, 0.45, np.full_like(background, 255), 0.55, 0)
    frame = found.differences()
    side = _FIELD_UM / found.mpp
    columns, rows = int(np.ceil(slide.width / side)), int(np.ceil(slide.height / side))

    def by_field(xy: np.ndarray) -> np.ndarray:
        x, y = np.clip(xy // side, 0, [columns - 1, rows - 1]).astype(int).T
        return np.bincount(y * columns + x, minlength=rows * columns).reshape(rows, columns)

    places = frame[["x_px", "y_px"]].to_numpy()
    differ = by_field(places)
    paired = by_field(found.a.polygons.take(found.pair_a).centroid())
    alone = by_field(places[frame["what"].isin([ONLY_A, ONLY_B]).to_numpy()])
    share = differ / (paired + alone + _FEW)
    tint = cv2.resize(share.astype(np.float32), (round(columns * side * scale), round(rows * side * scale)),
                      interpolation=cv2.INTER_NEAREST)[: size[1], : size[0]]  # fmt: skip
    weight = np.zeros(size[::-1], np.float32)
    weight[: tint.shape[0], : tint.shape[1]] = 0.7 * np.sqrt(tint)
    canvas = (canvas * (1 - weight[..., None]) + np.array(_RED) * weight[..., None]).astype(np.uint8)
    radius = max(1, round(1.5 * scale / found.mpp * 1.5))
    dots = np.rint(places * scale * 16).astype(int)
    for kind in (OUTLINE, CLASS, ONLY_B, ONLY_A):
        for x, y in dots[(frame["what"] == kind).to_numpy()].tolist():
            cv2.circle(canvas, (x, y), radius * 16, COLORS[kind], -1, cv2.LINE_AA, 4)
    return _with_legend(
        canvas, {str(kind): int(n) for kind, n in frame["what"].value_counts().items()}, scale, found.mpp
    )


def _with_legend(image: RGBImage, counts: Mapping[str, int], scale: float, mpp: float) -> RGBImage:
    import cv2

    height, width = image.shape[:2]
    canvas = np.full((height + 62, max(width, 640), 3), 255, np.uint8)
    canvas[:height, :width] = image
    font, x = cv2.FONT_HERSHEY_SIMPLEX, 10
    for kind in KINDS:
        word = f"{kind}: {counts.get(kind, 0):,}"
        cv2.circle(canvas, (x + 5, height + 18), 5, COLORS[kind], -1, cv2.LINE_AA)
        cv2.putText(canvas, word, (x + 16, height + 23), font, 0.45, _INK, 1, cv2.LINE_AA)
        x += 34 + cv2.getTextSize(word, font, 0.45, 1)[0][0]
    length = round(_FIELD_UM / mpp * scale)
    cv2.rectangle(canvas, (10, height + 44), (10 + length, height + 49), _INK, -1)
    word = f"{_FIELD_UM:g} um; the redder a field, the more of its nuclei differ"
    cv2.putText(canvas, word, (20 + length, height + 52), font, 0.45, _INK, 1, cv2.LINE_AA)
    return canvas


def write_html(
    path: Path,
    found: Comparison,
    drawn: RGBImage,
    slide: Slide,
    colors: Mapping[str, RGB],
    pictures: bool,
) -> None:
    """Write the page: counts, class changes, the map, and the places that differ most."""
    said = found.summary()
    classes = said["classes"]
    confusion = found.confusion()
    header = ["A \\ B", *classes, "only in A"]
    rows = [[name, *confusion[i].tolist()] for i, name in enumerate(classes)]
    rows.append(["only in B", *confusion[-1, :-1].tolist(), None])
    same = said["same_class"]
    sentence = (
        f"{said['matched']:,} nuclei are in both, {said['only_a']:,} only in A and {said['only_b']:,} only in B; "
        + ("" if same is None else f"{same:.1%} of those in both have the same class.")
    )
    page.write_page(
        path,
        "Two predictions compared",
        page.verdict(sentence, COLORS[CLASS]),
        page.facts(
            {
                "A": found.a.label,
                "B": found.b.label,
                "nuclei in A": len(found.a),
                "nuclei in B": len(found.b),
                "matched by overlap (IoU above 0.5)": found.by_overlap,
                f"pairs by their centres alone (within {RADIUS_UM:g} µm)": found.by_centre,
                "mean IoU of those matched by overlap": said["mean_iou"],
            }
        ),
        page.section("Classes of matched nuclei", page.table(header, rows)),
        page.section("Where they differ", page.picture(drawn, "map of the nuclei that differ", quality=92)),
        page.section(
            "Places that differ most",
            page.paragraph("A on the left, B on the right; outlines in the colours of the classes.", note=True),
            page.legend(colors),
            page.grid(_crops(slide, found, colors)),
        ),
        "" if pictures else page.paragraph("The image was not found; see --slide.", note=True),
    )


def _crops(slide: Slide, found: Comparison, colors: Mapping[str, RGB]) -> list[str]:
    frame = found.differences()
    if not len(frame):
        return []
    side = _CROP_UM / found.mpp
    cell = np.floor(frame[["x_px", "y_px"]].to_numpy() / side).astype(np.int64)
    cells, number = np.unique(cell, axis=0, return_counts=True)
    order = np.lexsort((cells[:, 0], cells[:, 1], -number))
    field = np.floor(cells[order] * side * found.mpp / _FIELD_UM).astype(np.int64)
    _, first = np.unique(field, axis=0, return_index=True)  # the worst of each field
    result: list[str] = []
    for index in order[np.sort(first)[:_CROPS]]:
        x, y = cells[index] * side
        box = (float(x), float(y), float(x + side), float(y + side))
        step = side / _CROP_PX
        pair = [overlay(slide, p.polygons, p.classes, box, step, 2.0, colors) for p in (found.a, found.b)]
        gap = np.full((pair[0].shape[0], 8, 3), 255, np.uint8)
        inside = frame["what"][(cell == cells[index]).all(axis=1)].value_counts()
        told = ", ".join(f"{n} {kind}" for kind, n in inside.items())
        place = f"x {x * found.mpp / 1000:.2f} mm, y {y * found.mpp / 1000:.2f} mm: {told}"
        both = np.concatenate([pair[0], gap, pair[1]], axis=1)
        result.append(page.captioned(page.picture(both, place), place))
    return result
