"""A table -> HTML: sortable, with fold-outs, in a box of its own that scrolls; light."""

from collections.abc import Callable

from stl10bench.escaping import html
from stl10bench.report.blocks import Cell, Details, Table

_STEPS = 10  # of colour
_LINE = 30  # characters


def table(table: Table, *, fold: Callable[[Details], str]) -> str:
    """The markup; `fold` gives that of a fold-out."""
    lefts = [number == 0 or name in table.left for number, name in enumerate(table.header)]
    heads = "".join(
        _head(table, name, left) for name, left in zip(table.header, lefts, strict=True)
    )
    bodies = []
    details = table.details or (None,) * len(table.lines)
    for line, more in zip(table.lines, details, strict=True):
        body = f"<tr>{''.join(map(_cell, line, lefts, range(len(line))))}</tr>"
        if more is not None:
            inside = f'<div class="fold">{fold(more)}</div>'
            body += f'<tr class="more"><td colspan="{len(line)}">{inside}</td></tr>'
        bodies.append(f"<tbody>{body}</tbody>" if table.sortable else body)
    whole = "".join(bodies) if table.sortable else f"<tbody>{''.join(bodies)}</tbody>"
    kind = ' class="matrix"' if table.corner or not table.header[0] else ""
    return (
        f'<div class="scroll" role="region" aria-label="{html(table.title)}" tabindex="0">'
        f"<table{kind}><caption>{html(table.title)}</caption>"
        f"<thead><tr>{heads}</tr></thead>{whole}</table></div>"
    )


def _head(table: Table, name: str, left: bool) -> str:
    kind = _classes(["left"] * left, name)
    if not name:
        return f"<th scope=col{kind}><small>{html(table.corner)}</small></th>"
    if not table.sortable or name in table.pictures:
        return f"<th scope=col{kind}>{html(name)}</th>"
    order = ' aria-sort="descending"' if name == table.sorted_by else ""
    return f'<th scope=col{kind}{order}><button type="button">{html(name)}</button></th>'


def _cell(cell: Cell, left: bool, number: int) -> str:
    heat = [] if cell.heat is None else [f"h{round(cell.heat * _STEPS)}"]
    kind = _classes(["left"] * left + heat, cell.text)
    value = "" if cell.value is None else f' data-value="{html(str(cell.value))}"'
    tag = "th scope=row" if number == 0 else "td"
    return f"<{tag}{kind}{value}>{cell.svg or html(cell.text)}</{tag[:2]}>"


def _classes(names: list[str], text: str) -> str:
    """The attribute; a text that is too long for one line is `long`."""
    names = names + ["long"] * (len(text) > _LINE)
    return f' class="{" ".join(names)}"' if names else ""
