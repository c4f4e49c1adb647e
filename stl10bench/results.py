"""Stored rows -> one table, as text for a terminal, Markdown, CSV or JSON; light."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stl10bench import files
from stl10bench.errors import CheckpointError, unknown

Row = dict[str, Any]
FORMATS = ("table", "markdown", "csv", "json")
_MISSING = "-"
_ACCURACY = "test accuracy [95 %]"
_LEFT_OUT_FIRST = (
    "precision",
    "trainable",
    "MACs",
    "images/s",
    "pretrained",
    "parameters",
    "train s",
    "test loss",
    "px",
)


class _RunSettings(BaseModel):
    model_config = ConfigDict(defer_build=True)

    data: str
    model_options: dict[str, Any]


class _Stored(BaseModel):
    """What a table needs of a stored row, and the type that it needs it in."""

    model_config = ConfigDict(strict=True, defer_build=True)

    run: str
    model: str
    model_options: dict[str, Any]
    dataset: str
    test_loss: float | None
    test_accuracy: float
    test_accuracy_interval: Annotated[list[float], Field(min_length=2, max_length=2)]
    test_images: int
    parameters: int
    trainable_parameters: int
    macs: int
    image_size: int
    pretrained: bool
    precision: str
    train_seconds: float
    images_per_second: float
    stacked: int = 1
    config: _RunSettings


def stored(runs_dir: Path) -> list[Row]:
    """The rows of all finished runs below `runs_dir`, by dataset and then by test accuracy.

    Raises CheckpointError for a file that holds no row.
    """
    rows = [
        _read(path)
        for path in sorted(runs_dir.glob("*/result.json"))
        if ".old-" not in path.parent.name
    ]
    return sorted(rows, key=lambda row: (_data(row), row["test_accuracy"]))


def _read(path: Path) -> Row:
    row = files.read_json(path, CheckpointError)
    try:
        _Stored.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} holds no row of a run: {where}: {first['msg']}") from None
    return row


def label(row: Row) -> str:
    """The model as a reader knows it: its name, what learns, and options of its own."""
    marks = []
    options = dict(row.get("model_options", {}))
    if "freeze" in options:
        marks.append("frozen" if options.pop("freeze") else "learned")
        if not row.get("pretrained") and not row.get("error"):
            marks.append("from scratch")
    given = row.get("config", {}).get("model_options", {})
    marks += [f"{key} {_plain(options[key])}" for key in given if key in options]
    if row.get("selection") == "last epoch":
        marks.append("last epoch")
    if row.get("stacked", 1) > 1:  # its seconds are those of all that were trained with it
        marks.append(f"{row['stacked']} stacked")
    return f"{row['model']} ({', '.join(marks)})" if marks else str(row["model"])


def _interval(row: Row) -> str:
    low, high = row["test_accuracy_interval"]
    return f"{row['test_accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _si(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"


def _weights(row: Row) -> str:
    if "freeze" not in row.get("model_options", {}):
        return _MISSING
    return "yes" if row["pretrained"] else "no"


# Title, and the cell of a finished row. What a failed row lacks is left empty.
_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("test loss", lambda row: _MISSING if row["test_loss"] is None else f"{row['test_loss']:.3f}"),
    (_ACCURACY, _interval),
    ("parameters", lambda row: f"{row['parameters']:,}"),
    ("trainable", lambda row: f"{row['trainable_parameters']:,}"),
    ("MACs", lambda row: _si(row["macs"])),
    ("px", lambda row: f"{row['image_size']}"),
    ("pretrained", _weights),
    ("precision", lambda row: "fp32" if row["precision"] == "no" else row["precision"]),
    ("train s", lambda row: f"{row['train_seconds']:,.0f}"),
    ("images/s", lambda row: f"{row['images_per_second']:,.0f}"),
)
_CSV = (
    "run",
    "model",
    "label",
    "dataset",
    "test_loss",
    "test_accuracy",
    "accuracy_low",
    "accuracy_high",
    "test_images",
    "val_accuracy",
    "parameters",
    "trainable_parameters",
    "macs",
    "image_size",
    "pretrained",
    "selection",
    "epochs",
    "seed",
    "precision",
    "processes",
    "stacked",
    "train_seconds",
    "images_per_second",
    "error",
)


def show(rows: Sequence[Row], style: str, console: Console) -> None:
    """Print rows to `console`, a table for each dataset; raises UsageError for another style."""
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)
    if style == "json":
        console.out(json.dumps(list(rows), indent=2), highlight=False)
    elif style == "csv":
        console.out(to_csv(rows), end="", highlight=False)
    else:
        for title, part in _by_dataset(rows):
            if style == "markdown":
                console.out(f"{_literal(title)}\n\n{to_markdown(part)}", highlight=False)
            else:
                print_table(part, title, console)


def print_table(rows: Sequence[Row], title: str, console: Console) -> None:
    """Print a rich table; on a narrow terminal the columns that matter least are left out."""
    if not console.is_terminal:
        console = Console(file=console.file, width=200)
    shown = [name for name, _ in _COLUMNS]
    for name in _LEFT_OUT_FIRST:
        wide = console.options.update(max_width=1000)
        if console.measure(to_table(rows, title, shown), options=wide).maximum <= console.width:
            break
        shown.remove(name)
    console.print(to_table(rows, title, shown))
    if len(shown) < len(_COLUMNS):
        hidden = ", ".join(name for name, _ in _COLUMNS if name not in shown)
        console.print(f"[dim]no room for: {hidden} (--format markdown has all)[/dim]")
    for row in rows:
        if _short(row) != row.get("error", ""):
            console.print(f"{label(row)}: {_clean(row['error'])}", markup=False, highlight=False)


def to_table(rows: Sequence[Row], title: str, shown: Sequence[str]) -> Table:
    """Rows as a rich table with the columns `shown`; other people's names are escaped."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in cells(row, shown)))
    return table


def to_markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    names = [name for name, _ in _COLUMNS]
    lines = [["model", *names], ["---", *("---:" for _ in names)]]
    for row in rows:
        first, *others = cells(row, names)
        lines.append([_literal(first), *(map(_literal, others) if "error" in row else others)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV with full numbers; text that a spreadsheet would run is quoted with '."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        low, high = row.get("test_accuracy_interval", (None, None))
        flat = {**row, "label": label(row), "accuracy_low": low, "accuracy_high": high}
        writer.writerow({key: _inert(value) for key, value in flat.items()})
    return out.getvalue()


def cells(row: Row, shown: Sequence[str]) -> list[str]:
    """One row's cells; a failed run says why in place of its accuracy."""
    if "error" in row:
        return [_clean(label(row)), *(_short(row) if name == _ACCURACY else "" for name in shown)]
    return [_clean(label(row)), *(cell(row) for name, cell in _COLUMNS if name in shown)]


def _short(row: Row) -> str:
    """The part of a failed run's reason that fits into a cell."""
    reason = _clean(row.get("error", ""))
    return reason.partition(",")[0] if len(reason) > 40 else reason


def _by_dataset(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    titles = sorted({_data(row) for row in rows if "error" not in row}) or [""]
    return [
        (title, [row for row in rows if ("error" in row or _data(row) == title)])
        for title in titles
    ]


def _data(row: Row) -> str:
    if "error" in row:
        return ""
    name, fingerprint = row["dataset"], row["config"]["data"][:12]
    note = {"STL-10": "", "demo": ": drawn images, not STL-10"}.get(
        name, f" {fingerprint}: not the STL-10 images"
    )
    return f"{_clean(name)}{note}, {row['test_images']:,} test images"


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _clean(text: str) -> str:
    """Other people's text on one line, without control characters."""
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)


def _literal(text: str) -> str:
    """Other people's text for Markdown, where it means nothing."""
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text)


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = _clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
