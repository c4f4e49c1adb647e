"""A figure in a page: only shapes and words, in the page's colours, whatever the words are."""

import re
from xml.etree import ElementTree

from helpers.pictures import HOSTILE
from matplotlib.figure import Figure

from stl10bench.plots import style
from stl10bench.report.figures import inline_svg


@style.figure_style()
def drawn() -> Figure:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2, 3], [1, 3, 2], "o-", color=style.BLUE)
    axes.fill_between([1, 2, 3], [0, 1, 1], [2, 4, 3], color=style.COLOURS[3], alpha=0.15)
    axes.plot([2], [2], "o", color="black", mfc="white")
    style.legend(figure, axes.lines[:1] * len(HOSTILE), HOSTILE, "lower center")
    style.frame(figure, "")
    return figure


def test_it_has_shapes_and_words_alone_and_no_style_id_or_address() -> None:
    svg = ElementTree.fromstring(inline_svg(drawn(), "a <b> & c"))
    assert {element.tag for element in svg.iter()} == {"svg", "title", "path", "circle", "text"}
    keys = {key for element in svg.iter() for key in element.attrib}
    assert not keys & {"style", "id", "class", "href", "clip-path", "font-family"}
    assert not [v for e in svg.iter() for v in e.attrib.values() if re.search(r"url|://", v)]
    assert svg.findtext("title") == "a <b> & c"
    words = [text.text for text in svg.iter("text")]
    assert words[-len(HOSTILE) :] == list(HOSTILE)
    dots = svg.iter("circle")
    assert len([dot for dot in dots if dot.get("fill") == "var(--blue)"]) == 3 + 4  # of the legend


def test_its_ink_is_the_pages_and_its_bytes_are_the_same_each_time() -> None:
    svg = inline_svg(drawn(), "x")
    colours = set(re.findall(r' (?:fill|stroke)="([^"]+)"', svg))
    assert colours <= {"none", style.COLOURS[3]} | {
        f"var(--{name})" for name in ("ink", "paper", "soft", "rule", "blue")
    }
    assert {"var(--ink)", "var(--paper)", "var(--blue)"} <= colours
    assert inline_svg(drawn(), "x") == svg
