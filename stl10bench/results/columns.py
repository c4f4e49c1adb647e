"""A row -> the value and the text of each column of a table."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stl10bench.config import RunConfig
from stl10bench.core.console import clean
from stl10bench.core.errors import unknown
from stl10bench.results.aggregate import run_count
from stl10bench.results.rows import Failure, Row

MISSING = "-"
_NO_CELLS = ("confusion", "test_hits", "repeated_hits", "config", "libraries", "weights")
LABEL = "model"  # the title of the first column, which every table has


@dataclass(frozen=True)
class Column:
    """What `--columns` calls it, its title, and how a value that is there reads."""

    key: str
    title: str
    read: Callable[[Any], str]


def value(row: Row | Failure, key: str) -> Any:
    """What the row says under `key`: itself, its settings, or its model's options; None if not."""
    if isinstance(row, Row) and key in _DERIVED:
        return _DERIVED[key](row)
    if key == "protocol":
        return row.protocol
    if key in type(row).model_fields:
        return getattr(row, key)
    if row.config is not None and key in RunConfig.model_fields:
        return getattr(row.config, key)
    return row.model_options.get(key)


def text(row: Row | Failure, column: Column) -> str:
    """The cell of a row; a failure says its state in place of the accuracy, else its settings."""
    content = value(row, column.key)
    if isinstance(row, Failure) and (content is None or column.key == "test_accuracy"):
        return row.state if column.key == "test_accuracy" else ""
    if content is None:
        return MISSING
    if column.key == "test_accuracy" and isinstance(row, Row):
        return _accuracy(row)
    return column.read(content)


def column(key: str) -> Column:
    """The column `key`; one that has no title of its own is called by its key."""
    return COLUMNS.get(key) or Column(key, key.replace("_", " "), plain)


def choose(keys: Iterable[str], rows: Iterable[Row | Failure]) -> list[Column]:
    """The columns named `keys`; raises UsageError, with the nearest name, for what no row has."""
    available = names(rows)
    for key in keys:
        if key not in available:
            raise unknown("column", key, map(clean, available))
    return [column(key) for key in keys]


def informative(keys: Iterable[str], rows: Sequence[Row | Failure]) -> list[Column]:
    """The columns `keys` that tell these rows something; the test accuracy always."""
    repeated = any(isinstance(row, Row) and row.runs_asked not in (None, 1) for row in rows)
    always = {"test_accuracy": True, "runs": repeated}
    says = {key: any(value(row, key) not in (None, "none") for row in rows) for key in keys}
    return [column(key) for key in keys if always.get(key, says[key])]


def names(rows: Iterable[Row | Failure]) -> set[str]:
    """The columns of which a table of these rows can be made."""
    fields = {*Row.model_fields, *RunConfig.model_fields} - set(_NO_CELLS)
    return fields.union(COLUMNS, *(row.model_options for row in rows))


def p_value(p: float) -> str:
    """A p-value with three decimals."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _accuracy(row: Row) -> str:
    cell = f"{row.test_accuracy:.3f}"
    if row.test_accuracy_interval is not None:
        low, high = row.test_accuracy_interval
        cell += f" [{low:.3f}, {high:.3f}]"
    return f"{cell} at chance" if row.at_chance else cell


def plain(content: Any) -> str:
    """Any value of a row as a short text."""
    if content is None:
        return MISSING
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, float):
        return _short(content)
    if isinstance(content, list | tuple):
        texts = [plain(part) for part in content]
        return ("," if any(text.startswith("-") for text in texts) else "-").join(texts)[:80]
    return str(content)[:80]


def _short(number: float) -> str:
    """Four digits: 0.25, 1e-4, 1.5e+06."""
    text = f"{number:.4g}"
    if 0 < abs(number) < 1e-3:  # 0.00025 is hard to read beside 0.000025
        mantissa, exponent = f"{number:.3e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text


def _shares(content: list[float | None]) -> str:
    return " ".join(MISSING if share is None else f"{share:.2f}" for share in content)


def si_number(content: float) -> str:
    """A short number: 25.2M, 1.5k, 0.25."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if content >= limit:
            return f"{content / limit:.3g}{unit}"
    return f"{content:.3g}"


_share, _two_digits, _count = "{:.3f}".format, "{:.2f}".format, "{:,.0f}".format


def _balanced_accuracy(row: Row) -> float | None:
    """The mean accuracy of the classes, 0..1: that of a constant class is 1 / C, however many."""
    shares = [share for share in row.per_class_accuracy or () if share is not None]
    return sum(shares) / len(shares) if shares else None


_DERIVED: dict[str, Callable[[Row], Any]] = {
    "runs": run_count,
    "pretrained": lambda row: row.pretrained if "freeze" in row.model_options else None,
    "image_size": lambda row: None if row.baseline else row.image_size,
    "balanced_accuracy": _balanced_accuracy,
    "accuracy_low": lambda row: (row.test_accuracy_interval or (None, None))[0],
    "accuracy_high": lambda row: (row.test_accuracy_interval or (None, None))[1],
    "protocol": lambda row: None if row.baseline else row.protocol,
    "fold": lambda row: None if len(row.repeats) > 1 else row.config.fold,
    "k_fold_part": lambda row: None if len(row.repeats) > 1 else row.config.k_fold_part,
}
COLUMNS = {
    column.key: column
    for column in (
        Column("test_loss", "test loss", _share),
        Column("test_accuracy", "test accuracy [95 %]", _share),
        Column("tta_accuracy", "accuracy with TTA", _share),
        Column("tta_loss", "loss with TTA", _share),
        Column("runs", "runs", str),
        Column("test_accuracy_sd", "SD over runs", "{:.4f}".format),
        Column("vs_best", "vs best", str),
        Column("p_vs_best", "p vs best", p_value),
        Column("group", "group", str),
        Column("verified", "verified", str),
        Column("protocol", "protocol", str),
        Column("at_chance", "at chance", plain),
        Column("accuracy_low", "accuracy low", _share),
        Column("accuracy_high", "accuracy high", _share),
        Column("balanced_accuracy", "balanced accuracy", _share),
        Column("test_macro_f1", "macro F1", _share),
        Column("test_ece", "ECE", _share),
        Column("test_brier", "Brier", _share),
        Column("test_temperature", "temperature", _two_digits),
        Column("test_loss_scaled", "loss scaled", _share),
        Column("test_ece_scaled", "ECE scaled", _share),
        Column("test_brier_scaled", "Brier scaled", _share),
        Column("per_class_accuracy", "per-class accuracy", _shares),
        Column("val_accuracy", "validation accuracy", _share),
        Column("val_loss", "validation loss", _share),
        Column("parameters", "parameters", _count),
        Column("trainable_parameters", "trainable", _count),
        Column("macs", "MACs", si_number),
        Column("image_size", "px", str),
        Column("pretrained", "pretrained", plain),
        Column("contamination", "contamination", str),
        Column("labels_used", "labels", _count),
        Column("unlabeled_used", "unlabelled", _count),
        Column("copies_dropped", "copies dropped", _count),
        Column("precision", "precision", lambda content: "fp32" if content == "no" else content),
        Column("train_seconds", "train s", _count),
        Column("seconds_to", "s to best", _count),
        Column("pretrain_seconds", "pretrain s", _count),
        Column("images_per_second", "images/s", _count),
        Column("latency_ms", "latency ms", _two_digits),
        Column("latency_p95_ms", "latency p95 ms", _two_digits),
        Column("inference_images_per_second", "inference images/s", _count),
        Column("peak_memory_mb", "peak MB", _count),
        Column("checkpoint_mb", "checkpoint MB", "{:.1f}".format),
    )
}
DEFAULT = (
    *("test_loss", "test_accuracy", "tta_accuracy", "runs", "test_accuracy_sd", "vs_best"),
    *("unlabeled_used", "copies_dropped"),
    *("verified", "parameters", "trainable_parameters", "macs", "image_size", "contamination"),
    "precision",
    *("train_seconds", "images_per_second"),
)
# On a narrow terminal these go first, in this order; never the model and its accuracy.
EXPENDABLE = (
    *("copies dropped", "precision", "trainable", "MACs", "images/s", "contamination", "px"),
    *("parameters", "train s", "SD over runs", "unlabelled", "runs", "vs best", "test loss"),
)
CSV = (
    *("run", "model", "label", "baseline", "dataset", "test_loss", "test_accuracy"),
    *("accuracy_low", "accuracy_high", "runs", "test_accuracy_sd", "at_chance", "vs_best"),
    *("p_vs_best", "test_images"),
    *("test_macro_f1", "test_ece", "test_brier", "test_temperature", "test_loss_scaled"),
    *("test_ece_scaled", "test_brier_scaled", "val_accuracy", "parameters"),
    *("trainable_parameters", "macs", "image_size", "pretrained", "selection", "epochs", "seed"),
    *("precision", "processes", "stacked", "train_seconds", "images_per_second"),
    *("group", "source", "verified", "error", "protocol", "method", "fold", "labels_per_class"),
    *("labels_used", "unlabeled_used", "copies_dropped", "contamination"),
)
