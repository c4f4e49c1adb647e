"""Rows as tables: the same numbers in every format, and nobody's name breaks one."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stl10bench import results
from stl10bench.errors import CheckpointError, UsageError

HOSTILE = ["[red]x[/red]", "[/]", "a|b", "=1+1", "@SUM(A1)", "a\nb", "\x1b[2Jx", "<b>x</b>", "`x`"]


def row_of(model: str = "mlp", accuracy: float = 0.5, **other: Any) -> results.Row:
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
        "selection": "hold-out",
        "epochs": 3,
        "seed": 0,
        "precision": "no",
        "processes": 1,
        "train_seconds": 1234.5,
        "images_per_second": 1500.25,
        "config": {"data": "0123456789abcdef", "model_options": {}},
    } | other


def failed(model: str = "cnn", error: str = "diverged: at step 3, lower --lr") -> results.Row:
    return {"model": model, "model_options": {}, "error": error}


def shown(rows: list[results.Row], style: str, width: int = 400) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    results.show(rows, style, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;]*m", "", text) if style == "table" else text


def store(runs_dir: Path, row: results.Row) -> None:
    folder = runs_dir / str(row["run"])
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(row))


def test_every_format_says_the_same_numbers() -> None:
    rows = [row_of(accuracy=0.4321)]
    assert json.loads(shown(rows, "json")) == rows
    (line,) = csv.DictReader(io.StringIO(shown(rows, "csv")))
    assert (float(line["test_accuracy"]), int(line["parameters"])) == (0.4321, 6457482)
    assert (line["accuracy_low"], line["accuracy_high"]) == ("0.4196", "0.4446")
    for style in ("table", "markdown"):
        text = shown(rows, style)
        for cell in ("mlp", "0.432 [0.420, 0.445]", "6,457,482", "12,345", "6.46M", "64", "1.250"):
            assert cell in text, (style, cell)
        assert "STL-10, 8,000 test images" in text


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("style", results.FORMATS)
def test_no_name_or_reason_breaks_a_table(style: str, hostile: str) -> None:
    rows = [row_of(model=hostile, dataset=hostile), failed(error=hostile)]
    text = shown(rows, style)
    assert "\x1b" not in text
    if style == "json":
        assert json.loads(text)[0]["model"] == hostile
    elif style == "csv":
        first, second = csv.DictReader(io.StringIO(text))
        assert first["model"].lstrip("'") == results._clean(hostile)
        for cell in (*first.values(), *second.values()):
            assert cell[:1] not in tuple("=@+-"), "a spreadsheet would run it"
    elif style == "markdown":
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 4
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {12}
    else:
        assert results._clean(hostile) in text


@given(st.text(), st.text())
def test_any_text_gives_one_line_a_row_in_csv(model: str, error: str) -> None:
    lines = list(csv.reader(io.StringIO(shown([row_of(model=model), failed(error=error)], "csv"))))
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 240])
def test_a_table_fits_the_terminal_and_never_loses_model_or_accuracy(width: int) -> None:
    rows = [row_of(), row_of("mobilenetv2", 0.75, model_options={"freeze": True}, pretrained=True)]
    text = shown(rows, "table", width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "0.750 [0.738, 0.762]" in text
    assert ("no room for" in text) == (width < 150)


def test_a_table_that_is_piped_has_all_columns() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    results.show([row_of()], "table", console)
    assert "images/s" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_failed_run_says_why_in_its_place() -> None:
    text = shown([row_of(), failed(), row_of("cnn")], "table")
    models = [line.split()[0] for line in text.splitlines() if re.match(r" ?(mlp|cnn) ", line)]
    assert models == ["mlp", "cnn", "cnn"]
    assert "diverged: at step 3" in text


def test_a_long_reason_stands_in_full_below_the_table() -> None:
    reason = "needs weights: --weights FILE, for a frozen backbone that is random learns nothing"
    text = shown([row_of(), failed("mobilenetv2", reason)], "table", width=100)
    assert f"mobilenetv2: {reason}" in " ".join(text.split())


def test_a_failed_run_alone_is_a_table_too() -> None:
    assert "diverged" in shown([failed()], "table")
    assert "diverged" in shown([failed()], "markdown")


@pytest.mark.parametrize(
    ("other", "label"),
    [
        ({}, "mlp"),
        ({"selection": "last epoch"}, "mlp (last epoch)"),
        ({"stacked": 8}, "mlp (8 stacked)"),
        ({"stacked": 1}, "mlp"),
        ({"model_options": {"freeze": True}, "pretrained": True}, "mlp (frozen)"),
        ({"model_options": {"freeze": False}, "pretrained": True}, "mlp (learned)"),
        ({"model_options": {"freeze": False}}, "mlp (learned, from scratch)"),
        (
            {
                "model_options": {"hidden": [64, 32], "dropout": 0.2},
                "config": {"data": "", "model_options": {"hidden": [64, 32]}},
            },
            "mlp (hidden 64-32)",
        ),
    ],
)
def test_a_label_says_what_learns_and_which_options_differ(other: Any, label: str) -> None:
    assert results.label(row_of(**other)) == label


def test_only_the_official_images_are_called_stl10() -> None:
    title = shown([row_of(dataset="STL-10")], "markdown").splitlines()[0]
    assert title == "STL-10, 8,000 test images"
    other = shown([row_of(dataset="STL-10 layout")], "markdown").splitlines()[0]
    assert other == "STL-10 layout 0123456789ab: not the STL-10 images, 8,000 test images"
    demo = shown([row_of(dataset="demo")], "markdown").splitlines()[0]
    assert demo == "demo: drawn images, not STL-10, 8,000 test images"


def test_data_are_never_mixed_in_one_table() -> None:
    text = shown([row_of(), row_of("cnn", dataset="demo")], "table")
    first, second = text.split("demo: drawn")
    assert ("mlp" in first, "cnn" in first) == (True, False)
    assert ("mlp" in second, "cnn" in second) == (False, True)


def test_stored_rows_are_found_in_order_and_old_ones_left_out(tmp_path: Path) -> None:
    for name, accuracy in (("b", 0.9), ("a", 0.1), ("c", 0.5), ("c-0.old-1", 0.7)):
        store(tmp_path, row_of(name, accuracy, run=name))
    (tmp_path / "unfinished").mkdir()
    assert [row["model"] for row in results.stored(tmp_path)] == ["a", "c", "b"]


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "NaN", "[" * 5000])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    store(tmp_path, row_of())
    (tmp_path / "mlp-0" / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"mlp-0/result\.json"):
        results.stored(tmp_path)


@pytest.mark.parametrize("content", ['{"model": "x"}', '{"test_accuracy": "high"}', "{}"])
def test_a_result_that_lacks_what_a_row_needs_is_named(tmp_path: Path, content: str) -> None:
    store(tmp_path, row_of())
    (tmp_path / "mlp-0" / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"mlp-0/result\.json"):
        results.stored(tmp_path)


def test_an_unknown_format_says_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown format 'tabel': did you mean 'table'"):
        shown([row_of()], "tabel")
