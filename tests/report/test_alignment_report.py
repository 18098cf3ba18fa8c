import re

import numpy as np
import pytest

from stqp.alignment import measure, read_alignment
from stqp.alignment.fields import FIELD_UM
from stqp.report.alignment import (
    _GREEN,
    _RED,
    _YELLOW,
    alignment_html,
    color_of_shift,
    draw_field,
    draw_map,
    worst_fields,
    write_alignment_report,
)
from stqp.slides import open_slide
from stqp.sources.xenium import XeniumBundle


@pytest.fixture(scope="module")
def measured(sample):
    bundle = XeniumBundle.open(sample.outs)
    um = bundle.read_nuclei(bundle.read_cells().ids).polygons
    nuclei = um.transform(read_alignment(sample.alignment).um_to_he(bundle.pixel_size)).shift(20, 0)
    with open_slide(sample.he) as slide:
        yield slide, nuclei, measure(slide, nuclei, sample.mpp), sample.mpp


def test_colours_follow_the_thresholds():
    assert [color_of_shift(um) for um in (0, 1, 1.5, 2.1, 20)] == [_GREEN, _GREEN, _YELLOW, _RED, _RED]


def test_map_shows_the_fields_and_their_way(measured):
    slide, _, quality, mpp = measured
    picture = draw_map(slide, quality, mpp)
    assert picture.dtype == np.uint8 and picture.shape[1] >= 700
    side = round(FIELD_UM / mpp * picture.shape[1] / slide.width)
    rows, columns = np.nonzero((picture[:side, :side] == (30, 30, 30)).all(axis=2))
    assert np.ptp(columns) > np.ptp(rows) > 0  # the arrow lies, for the nuclei lie to the right
    assert (picture == _RED).all(axis=2).any()


def test_field_shows_outlines_as_they_lie_and_as_they_should(measured):
    slide, nuclei, quality, mpp = measured
    picture = draw_field(slide, nuclei, quality, worst_fields(quality)[0], mpp)
    cyan = (np.abs(picture.astype(int) - (0, 200, 255)) < 30).all(axis=2)
    yellow = (np.abs(picture.astype(int) - (255, 214, 10)) < 30).all(axis=2)
    assert cyan.sum() > 500 and yellow.sum() > 100


def test_page_holds_everything_itself(measured, tmp_path):
    slide, nuclei, quality, mpp = measured
    paths = write_alignment_report(tmp_path, "he", slide, nuclei, quality, mpp, "a <b> & c")
    page = paths["report"].read_text(encoding="utf-8")
    assert quality.text() in page and "a &lt;b&gt; &amp; c" in page and "a <b>" not in page
    assert set(re.findall(r'src="(data:image/jpeg;base64,)', page)) and not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<figure>") == len(worst_fields(quality)) >= 1
    assert paths["map"].read_bytes()[:4] == b"\x89PNG"


def test_page_of_nothing(measured):
    slide, nuclei, _, mpp = measured
    none = nuclei.take(np.arange(2))
    quality = measure(slide, none, mpp)
    page = alignment_html(slide, none, quality, mpp, "none", draw_map(slide, quality, mpp))
    assert "too few nuclei" in page and "not known" in page and "<p>None.</p>" in page and "nan" not in page
