"""Rows as a run writes them, and tables as text."""

import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from stl10bench.results.benchmark_table import View, show_rows
from stl10bench.results.predictions import Predictions
from stl10bench.results.rows import Failure, Row, parse_row
from stl10bench.results.run_folder import RunFolder

HOSTILE = [
    *("[red]x[/red]", "[/]", "a|b", "=1+1", "@SUM(A1)", "a\nb", "\x1b[2Jx", "<b>x</b>", "`x`"),
    *("a&b_c%d#e$f{g}~h^i\\j", "[x](http://y)", "--no", "</td><script>x</script>", "\t=1", " -1"),
]


def row_values(model: str = "mlp", accuracy: float = 0.5, **other: Any) -> dict[str, Any]:
    """A row as the JSON of a result.json, of 8,000 test images."""
    return {
        "run": f"{model}-0",
        "model": model,
        "model_options": {},
        "dataset": "STL-10",
        "test_loss": 1.25,
        "test_accuracy": accuracy,
        "test_accuracy_interval": [accuracy - 0.0125, accuracy + 0.0125],
        "test_images": 8000,
        "val_accuracy": 0.5,
        "parameters": 6457482,
        "trainable_parameters": 12345,
        "macs": 6455552,
        "image_size": 64,
        "pretrained": False,
        "selection": "validation",
        "epochs": 3,
        "seed": 0,
        "precision": "no",
        "processes": 1,
        "train_seconds": 1234.5,
        "images_per_second": 1500.25,
        "config": {"data": "0123456789abcdef"},
    } | other


def row_of(model: str = "mlp", accuracy: float = 0.5, **other: Any) -> Row:
    return parse_row(row_values(model, accuracy, **other))


def shown(rows: Sequence[Row | Failure], style: str, width: int = 400, **view: Any) -> str:
    """What `show_rows` prints on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    show_rows(rows, style, console, View(**view))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;]*m", "", text) if style == "table" else text


class Page(HTMLParser):
    """The cells of an HTML page, row by row, and the tags in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def cells_of(text: str, style: str) -> list[list[str]]:
    """The cells of a table of one part, its header first, without their escapes."""
    if style == "html":
        return [[cell.strip() for cell in row] for row in Page(text).rows]
    if style == "latex":
        body = text.partition("\\toprule")[2].partition("\\bottomrule")[0]
        lines = [line[:-3] for line in body.splitlines() if line.endswith(" \\\\")]
        return [[plain(cell) for cell in re.split(r" (?<!\\)& ", line)] for line in lines]
    if style == "markdown":
        lines = [line[2:-2] for line in text.splitlines() if line.startswith("|")]
        lines = [line for line in lines if not line.startswith("---")]
        return [[plain(c) for c in re.split(r" (?<!\\)\| ", line)] for line in lines]
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return [line for line in lines if len(line) > 3]


def plain(cell: str) -> str:
    """Escaped LaTeX or Markdown as it is read."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^"}
    names |= {"textless": "<", "textgreater": ">", "textbar": "|"}
    cell = re.sub(r"\\(text[a-z]+)\{\}", lambda found: names[found[1]], cell)
    cell = cell.replace("{[}", "[").replace("{]}", "]").replace("-{}-", "--")
    return re.sub(r"\\([^a-z0-9 ])", r"\1", cell)


def store(runs_dir: Path, row: Row | dict[str, Any]) -> RunFolder:
    """A finished run folder with a row and no predictions, as 0.1.0 wrote it where it has hits."""
    values = row.model_dump(mode="json") if isinstance(row, Row) else row
    folder = RunFolder(runs_dir / str(values["run"]))
    folder.path.mkdir(parents=True)
    folder.result_file.write_text(json.dumps(values))
    return folder


def with_hits(row: Row, hits: Any = None) -> Row:
    """The row with hits (N,), the first ones by default; its images are of two equal classes."""
    images = row.test_images
    hits = np.arange(images) < round(row.test_accuracy * images) if hits is None else hits
    labels = np.arange(images) % 2
    logits = np.eye(2, dtype=np.float32)[np.where(hits, labels, 1 - labels)]
    predicted = Predictions(logits, labels, None, None)
    return row.model_copy(
        update={"test_hits": predicted.hits(), "confusion": predicted.confusion()}
    )
