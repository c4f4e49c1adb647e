"""Names beside points -> where each covers nothing; light."""

from stl10bench.report.svg import words

CHARACTER = 6.1  # px, of a mean character at the size of the labels
_LONGEST = 26  # characters

Box = tuple[float, float, float, float]  # left, top, width, height


def label(
    name: str,
    x: float,
    y: float,
    width: int,
    height: int,
    boxes: list[Box],
) -> str:
    """The name beside its point, where it covers nothing; else none (the point still tells it)."""
    text = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    long = CHARACTER * len(text)
    places = [
        (x + 9, y + 4, "start"), (x - 9, y + 4, "end"), (x + 8, y - 8, "start"),
        (x - 8, y - 8, "end"), (x + 8, y + 17, "start"), (x - 8, y + 17, "end"),
    ]  # fmt: skip
    for left, base, anchor in places:
        start = left - long if anchor == "end" else left
        room = start, base - 10, long, 13.0
        inside = start > 46 and start + long < width - 2 and 8 < base < height - 44
        if inside and not any(_overlap(room, other) for other in boxes):
            boxes.append(room)
            return words(left, base, text, anchor=anchor)
    return ""


def box(a: tuple[float, float], b: tuple[float, float]) -> Box:
    """The room of an upright or level line."""
    return min(a[0], b[0]), min(a[1], b[1]), abs(a[0] - b[0]), abs(a[1] - b[1])


def _overlap(one: Box, other: Box) -> bool:
    return (
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
    )
