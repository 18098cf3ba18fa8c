import html.parser
import re

import numpy as np
import pytest
from celltyping.slides import slide

from stqp.celltyping.methods import type_cells
from stqp.celltyping.result import Typing
from stqp.report.typing import cluster_colors, draw_cells, reliability_figure, typing_html


class Words(html.parser.HTMLParser):
    """Text and links of a page."""

    def __init__(self):
        super().__init__()
        self.text, self.links = [], []

    def handle_data(self, data):
        self.text.append(data)

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]


def read(page):
    words = Words()
    words.feed(page)
    return " ".join(" ".join(words.text).split()), words.links


@pytest.fixture(scope="module")
def planted():
    made = slide(1)
    return made, type_cells(made, seed=3)


def test_the_page_says_what_the_record_says(planted):
    made, typed = planted
    page = typing_html(typed, made.obsm["spatial"], "<one>")
    text, links = read(page)
    assert "Types of cells: <one>" in text
    for name, number in typed.class_counts().items():
        assert re.search(rf"{name} {number:,} ", text)
    for reason, number in typed.summary["unknown"].items():
        assert (f"{reason} {number:,}" in text) == (number > 0)
    for row in typed.clusters:
        assert row["why"] in text and row["top_genes"][0]["gene"] in text
    assert "decided by evidence" in text and "HMGA1" in text
    assert "Expected calibration error" in text and "2,000 in all" in text
    assert len(links) == 3 and all(link.startswith("data:image/") for link in links)  # maps and plot, nothing outside


def test_without_places_clusters_or_votes():
    ids = np.array(["a", "b"], object)
    none = np.full(2, None, object)
    typed = Typing(ids, np.full(2, "Unknown", object), np.zeros(2), np.full(2, -1), none)
    assert "Unknown 2 100.0%" in read(typing_html(typed))[0]
    empty = Typing(ids[:0], ids[:0], np.zeros(0), np.zeros(0, np.int64), ids[:0])
    assert "Types of cells" in read(typing_html(empty, np.zeros((0, 2))))[0]


def test_the_methods_without_calibration_say_what_their_confidence_is(planted):
    made, _ = planted
    text, links = read(typing_html(type_cells(made, "paper"), made.obsm["spatial"]))
    assert "the share of its cluster's votes that went to its class; not calibrated" in text and len(links) == 3


def test_cells_are_drawn_where_they_are():
    places = np.array([[0, 0], [100, 0], [0, 50], [np.nan, 1]])
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    image = draw_cells(places, colors, side=108)
    assert image.shape == (58, 108, 3)
    assert image[1, 1].tolist() == [255, 0, 0] and image[1, 101].tolist() == [0, 255, 0]
    assert image[51, 1].tolist() == [0, 0, 255] and not (image == 9).all(axis=2).any()
    assert draw_cells(places[3:], colors[3:]).shape == (1, 1, 3)
    assert len(set(cluster_colors(40))) == 40


def test_points_of_the_plot_are_the_bins():
    bins = [{"cells": 10, "confidence": 0.3, "right": 0.4}, {"cells": 90, "confidence": 0.9, "right": 0.95}]
    plot = reliability_figure(bins, np.array([0.9, 0.3])).axes[0]
    assert plot.lines[1].get_xydata().tolist() == [[0.3, 0.4], [0.9, 0.95]]
    assert {t.get_text() for t in plot.texts} == {"10", "90"}
