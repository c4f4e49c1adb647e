"""A figure -> SVG that is part of a page: plain attributes, in the page's own colours and font."""

import io
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from stl10bench.core.console import clean
from stl10bench.plots import style

_COLOURS = {  # of all figures -> of the page, which has others where it is dark
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    style.GREY: "var(--soft)",
    style.LIGHT_GREY: "var(--rule)",
    style.GRID: "var(--rule)",
    style.BLUE: "var(--blue)",
    style.ORANGE: "var(--orange)",
}
_DROPPED = ("font-family", "stroke-linecap", "stroke-linejoin", "stroke-dashoffset")
_LINK = "{http://www.w3.org/1999/xlink}href"


@style.figure_style()
def inline_svg(figure: Figure, title: str) -> Markup:
    """The lines, areas, round markers and texts of a figure, each with plain attributes.

    Nothing has a style, which a page's policy would not allow, an id, which another figure could
    have too, or an address. What leaves a panel is not cut there.
    """
    matplotlib.rc("svg", fonttype="none")  # else each letter is a path
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    shapes = {each.get("id"): each for defs in root.iter("defs") for each in defs}
    defined = {id(each) for shape in shapes.values() for each in shape.iter()}
    box = {"viewBox": root.attrib["viewBox"], "role": "img", "fill": "none"}
    svg = ElementTree.Element("svg", box)
    ElementTree.SubElement(svg, "title").text = clean(title)
    for element in root.iter():
        if element.tag in ("path", "text", "use") and id(element) not in defined:
            _add(svg, element, shapes)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _add(svg: Element, element: Element, shapes: Mapping[str | None, Element]) -> None:
    """Add what can be seen of a path, a text, or a marker: that is a circle, or a path moved."""
    parts = (part.split(": ", 1) for part in element.attrib.get("style", "").split("; ") if part)
    look = {"fill": "#000000"} | {key: value for key, value in parts if key not in _DROPPED}
    if look["fill"] == "none":
        del look["fill"]
    if not look.keys() & {"fill", "stroke"}:
        return
    look = {key: _COLOURS.get(value, value) for key, value in look.items()}
    tag, place = element.tag, element.attrib
    at: dict[str, str] = {key: _short(place[key]) for key in ("d", "x", "y") if key in place}
    turn = place.get("transform", "")
    if turn and not turn.startswith("rotate(-0 "):
        at["transform"] = turn
    if tag == "use":
        line = shapes[place[_LINK].removeprefix("#")].attrib["d"]
        if "C" in line:
            tag, at = "circle", {"cx": at["x"], "cy": at["y"], "r": _short(line.split()[2])}
        else:
            tag, at = "path", {"d": _short(line), "transform": f"translate({at['x']} {at['y']})"}
    ElementTree.SubElement(svg, tag, at | look).text = element.text


def _short(numbers: str) -> str:
    """The numbers and letters of a path, to a tenth of a point."""
    parts = (each if each.isalpha() else f"{round(float(each), 1):g}" for each in numbers.split())
    return " ".join(parts)
