"""Every format shows every kind of row, in the default columns and in all that there are."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import cells_of, row_of, shown, with_hits

from stl10bench.config import make_config
from stl10bench.results import columns
from stl10bench.results.benchmark_table import FORMATS, reference_rows, stored_rows
from stl10bench.results.rows import Failure, Row

OLD_RUNS = Path(__file__).parents[1] / "fixtures" / "runs-0.1.0"
DATA = "0123456789abcdef"


def config(**changes: Any) -> dict[str, Any]:
    return {"data": DATA, **changes}


def failure(**other: Any) -> Failure:
    settings = make_config({"model": "mobilenetv2", **config()})
    return Failure(**{"run": "mobilenetv2-0", "model": "mobilenetv2", "config": settings} | other)


def of_folds(accuracy: float, fold: int) -> Row:
    values = config(fold=fold, val_fraction=0.0, model="mlp")
    return with_hits(row_of("mlp", accuracy, run=f"mlp-{fold}", config=values, fold_overlap=0.17))


KINDS: dict[str, Sequence[Row | Failure]] = {
    "finished": [row_of()],
    "without what may be missing": [
        row_of(test_loss=None, test_accuracy_interval=None, run=None, precision=None, macs=None)
    ],
    "failed": [failure(error="no weights")],
    "diverged": [failure(state="diverged", error="the loss is nan at step 3")],
    "pruned": [failure(state="pruned", error="pruned after epoch 2")],
    "refused": [Failure(model="cnn", error="batch_size = 0: must be 1 or more")],
    "a failed backbone beside a finished one": [
        row_of("mobilenetv2", model_options={"freeze": True}, pretrained=True),
        failure(model_options={"freeze": True}, error="no weights"),
    ],
    "seeds, one is missing": [
        with_hits(row_of("mlp", 0.5, run="mlp-0", config=config(model="mlp", seed=0))),
        with_hits(row_of("mlp", 0.75, run="mlp-1", config=config(model="mlp", seed=1))),
        with_hits(row_of("cnn", 0.25, run="cnn-0", config=config(model="cnn", seed=0))),
    ],
    "folds": [of_folds(0.5, 0), of_folds(0.25, 1)],
    "baselines": [with_hits(row_of())],
    "reference": reference_rows("report"),
    "reference of folds": reference_rows("folds")[:2],
    "of 0.1.0": stored_rows(OLD_RUNS)[0],
    "stacked, of 0.1.0": [row_of(stacked=8)],
}


def models_in(text: str, style: str) -> list[str]:
    """The first word of each line of a table, or of what stands for it."""
    if style == "json":
        return [row.get("model") or row["label"] for row in json.loads(text)]
    if style == "csv":
        lines = list(csv.DictReader(io.StringIO(text), strict=True))
        assert not any(None in line or None in line.values() for line in lines)
        return [line.get("model") or line["label"] for line in lines]
    if style == "table":
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and ": " not in line.split("  ")[0]]
    return [line[0] for line in cells_of(text, style) if line]


@pytest.mark.parametrize("wanted", ["default columns", "all columns", "sorted"])
@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_shows_every_kind_of_row(kind: str, style: str, wanted: str) -> None:
    rows = KINDS[kind]
    names = sorted(columns.names(rows)) if wanted == "all columns" else ()
    view: dict[str, Any] = {"columns": tuple(names), "combine": kind == "seeds, one is missing"}
    view |= {"sort": "lr", "descending": True} if wanted == "sorted" else {}
    text = shown(rows, style, 20_000, baselines=kind == "baselines", **view)
    found = models_in(text, style)
    for model in {row.model for row in rows} | ({"chance"} if kind == "baselines" else set()):
        assert any(line.startswith(model) for line in found), model
    for row in rows:
        if isinstance(row, Failure):
            reason = row.error if style == "json" else row.error.split("_")[0][:40]
            assert (reason in text) or (wanted == "all columns" and style in ("csv", "json"))


@pytest.mark.parametrize("key", sorted(columns.names(())))
def test_rows_of_all_kinds_are_sorted_by_any_column(key: str) -> None:
    rows = [row for kind in KINDS.values() for row in kind[:2] if row.config is not None]
    assert len(json.loads(shown(rows, "json", sort=key, combine=False))) >= len(rows)
