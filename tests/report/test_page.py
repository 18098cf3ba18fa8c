"""The parts that reports are made of: all text is escaped, and nothing is loaded from elsewhere."""

import math
import re

import numpy as np
from matplotlib.figure import Figure

from stqp.report import page


def test_text_is_escaped_and_html_is_not():
    evil = '<script>alert("x")</script>'
    made = page.page(
        evil,
        page.verdict(evil, (1, 2, 3)),
        page.paragraph(evil),
        page.facts({evil: evil}),
        page.table([evil], [[evil], [page.swatch(evil, (4, 5, 6))]]),
        page.section(evil, page.captioned(page.picture(np.zeros((4, 4, 3), np.uint8), evil), evil)),
        page.legend({evil: (7, 8, 9)}),
    )
    assert "<script" not in made and made.count("&lt;script&gt;") == 13
    assert "rgb(4,5,6)" in made and "rgb(1,2,3)" in made


def test_values_of_all_kinds():
    shown = [str(page.escaped(v)) for v in (None, math.nan, 1234567, 0.12345, "a", True)]
    assert shown == ["–", "–", "1,234,567", "0.123", "a", "True"]


def test_columns_of_numbers_stand_to_the_right():
    made = page.table(["name", "n"], [["a", 1], ["b", None]])
    assert '<th class="n">n</th>' in made and "<th>name</th>" in made and '<td class="n">1</td>' in made
    assert page.table(["a"], []) == "" and page.section("empty", "", "") == "" and page.facts({}) == ""


def test_figures_and_pictures_are_inside_and_the_same_twice():
    def draw():
        drawn = Figure(figsize=(2, 1))
        drawn.add_subplot().plot([0, 1], [1, 0])
        return page.figure(drawn, "a line")

    assert draw() == draw()
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    made = page.page("x", draw(), page.picture(image, "noise"), page.picture(image, "noise", quality=None))
    kinds = re.findall(r'src="data:image/([a-z+]+);base64,', made)
    assert kinds == ["svg+xml", "jpeg", "png"] and not re.search(r'(src|href)="(?!data:)', made)


def test_a_page_takes_its_place_whole(tmp_path):
    path = page.write_page(tmp_path / "deep" / "x.html", "Title", page.paragraph("ü"))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "<h1>Title</h1>" in text and "ü" in text
    assert [p.name for p in path.parent.iterdir()] == ["x.html"]
