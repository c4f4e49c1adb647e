"""A row -> the value and the text of each column of a table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stl10bench.core.console import clean
from stl10bench.core.errors import unknown
from stl10bench.results.aggregate import run_count

Row = dict[str, Any]
MISSING = "-"
_TOO_LONG = ("confusion", "test_hits", "repeated_hits")  # for a cell
LABEL = "model"  # the title of the first column, which every table has


@dataclass(frozen=True)
class Column:
    """What `--columns` calls it, its title, and how a value that is there reads."""

    key: str
    title: str
    read: Callable[[Any], str]


def value(row: Row, key: str) -> Any:
    """What the row says under `key`: itself, its settings, or its model's options; None if not."""
    if key in _DERIVED:
        return _DERIVED[key](row)
    for place in (row, row.get("config", {}), row.get("model_options", {})):
        if key in place:
            return place[key]
    return None


def text(row: Row, column: Column) -> str:
    """The cell of a finished row."""
    found = value(row, column.key)
    if found is None:
        return MISSING
    if column.key == "test_accuracy":
        return _accuracy(row)
    return column.read(found)


def choose(keys: Iterable[str], rows: Iterable[Row]) -> list[Column]:
    """The columns named `keys`; raises UsageError, with the nearest name, for what no row has."""
    known = names(rows)
    chosen = []
    for key in keys:
        if key not in known:
            raise unknown("column", key, map(clean, known))
        chosen.append(COLUMNS.get(key) or Column(key, key.replace("_", " "), _plain))
    return chosen


def names(rows: Iterable[Row]) -> set[str]:
    """The columns of which a table of these rows can be made."""
    found = set(COLUMNS)
    for row in rows:
        for place in (row, row.get("config", {}), row.get("model_options", {})):
            found |= {
                key
                for key, one in place.items()
                if not isinstance(one, dict)
                and key not in ("confusion", "test_hits", "repeated_hits")
            }
    return found


def p_value(p: float) -> str:
    """A p-value with three decimals."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _accuracy(row: Row) -> str:
    cell = f"{row['test_accuracy']:.3f}"
    if interval := row.get("test_accuracy_interval"):
        low, high = interval
        cell += f" [{low:.3f}, {high:.3f}]"
    return f"{cell} = chance" if row.get("at_chance") else cell


def _plain(found: Any) -> str:
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.4g}"
    if isinstance(found, list | tuple):
        return "-".join(map(_plain, found))[:80]
    return str(found)[:80]


def _share(found: float) -> str:
    return f"{found:.3f}"


def _shares(found: list[float | None]) -> str:
    return " ".join(MISSING if one is None else f"{one:.2f}" for one in found)


def _count(found: float) -> str:
    return f"{found:,.0f}"


def _si(found: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if found >= limit:
            return f"{found / limit:.3g}{unit}"
    return f"{found:g}"


def _weights(row: Row) -> bool | None:
    """Whether a backbone was pretrained; None where there is no backbone."""
    return row["pretrained"] if "freeze" in row.get("model_options", {}) else None


_DERIVED: dict[str, Callable[[Row], Any]] = {
    "runs": run_count,
    "pretrained": _weights,
    "accuracy_low": lambda row: row.get("test_accuracy_interval", (None, None))[0],
    "accuracy_high": lambda row: row.get("test_accuracy_interval", (None, None))[1],
}
COLUMNS = {
    column.key: column
    for column in (
        Column("test_loss", "test loss", _share),
        Column("test_accuracy", "test accuracy [95 %]", _share),
        Column("runs", "runs", str),
        Column("test_accuracy_sd", "SD over runs", lambda found: f"{found:.4f}"),
        Column("vs_best", "vs best", str),
        Column("p_vs_best", "p vs best", p_value),
        Column("at_chance", "at chance", _plain),
        Column("accuracy_low", "accuracy low", _share),
        Column("accuracy_high", "accuracy high", _share),
        Column("test_macro_f1", "macro F1", _share),
        Column("test_ece", "ECE", _share),
        Column("test_brier", "Brier", _share),
        Column("test_temperature", "temperature", lambda found: f"{found:.2f}"),
        Column("test_loss_scaled", "loss scaled", _share),
        Column("test_ece_scaled", "ECE scaled", _share),
        Column("test_brier_scaled", "Brier scaled", _share),
        Column("per_class_accuracy", "per-class accuracy", _shares),
        Column("val_accuracy", "hold-out accuracy", _share),
        Column("val_loss", "hold-out loss", _share),
        Column("parameters", "parameters", _count),
        Column("trainable_parameters", "trainable", _count),
        Column("macs", "MACs", _si),
        Column("image_size", "px", str),
        Column("pretrained", "pretrained", _plain),
        Column("contamination", "contamination", str),
        Column("precision", "precision", lambda found: "fp32" if found == "no" else found),
        Column("train_seconds", "train s", _count),
        Column("images_per_second", "images/s", _count),
        Column("latency_ms", "latency ms", lambda found: f"{found:.2f}"),
        Column("latency_p95_ms", "latency p95 ms", lambda found: f"{found:.2f}"),
        Column("inference_images_per_second", "inference images/s", _count),
        Column("peak_memory_mb", "peak MB", _count),
        Column("checkpoint_mb", "checkpoint MB", lambda found: f"{found:.1f}"),
    )
}
DEFAULT = (
    *("test_loss", "test_accuracy", "runs", "test_accuracy_sd", "vs_best"),
    *("parameters", "trainable_parameters", "macs", "image_size", "contamination", "precision"),
    *("train_seconds", "images_per_second"),
)
# On a narrow terminal these go first, in this order; never the model and its accuracy.
EXPENDABLE = (
    *("precision", "trainable", "MACs", "images/s", "contamination", "parameters", "train s"),
    *("test loss", "px", "runs", "vs best", "SD over runs"),
)
CSV = (
    *("run", "model", "label", "baseline", "dataset", "test_loss", "test_accuracy"),
    *("accuracy_low", "accuracy_high", "runs", "test_accuracy_sd", "at_chance", "vs_best"),
    *("p_vs_best", "test_images"),
    *("test_macro_f1", "test_ece", "test_brier", "test_temperature", "test_loss_scaled"),
    *("test_ece_scaled", "test_brier_scaled", "val_accuracy", "parameters"),
    *("trainable_parameters", "macs", "image_size", "pretrained", "selection", "epochs", "seed"),
    *("precision", "processes", "stacked", "train_seconds", "images_per_second", "error"),
)
