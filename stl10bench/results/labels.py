"""Rows -> what a reader calls them: the model, and what tells it from the rows beside it."""

from collections import Counter
from collections.abc import Sequence

from stl10bench.config import RunConfig
from stl10bench.core.console import clean
from stl10bench.results.columns import plain
from stl10bench.results.rows import Failure, Row

_SHOWN = 3  # settings that tell rows of one label apart


def row_label(row: Row | Failure) -> str:
    """The model as a reader knows it: its name, what is trained, and its options."""
    marks = []
    options = dict(row.model_options)
    if "freeze" in options:
        from_scratch = isinstance(row, Row) and not row.pretrained
        tuned = "from scratch" if from_scratch else "fine-tuned"
        marks.append("frozen" if options.pop("freeze") else tuned)
    changed = row.config.model_options if row.config is not None else {}
    marks += [f"{key} {plain(options[key])}" for key in changed if key in options]
    if isinstance(row, Row):
        if row.selection == "last epoch":
            marks.append("last epoch")
        if row.stacked > 1:  # its seconds are those of all that were trained with it
            marks.append(f"{row.stacked} stacked")
        if row.baseline:
            marks.append("baseline")
    return f"{row.model} ({', '.join(marks)})" if marks else row.model


def row_labels(rows: Sequence[Row | Failure]) -> list[str]:
    """The label of each row; rows of one label are told apart by settings, then by a number."""
    labels = [clean(row_label(row)) for row in rows]
    names: list[str] = []
    seen: Counter[str] = Counter()
    for row, label in zip(rows, labels, strict=True):
        alike = [other for other, text in zip(rows, labels, strict=True) if text == label]
        configs = [other.config for other in alike if other is not row and other.config is not None]
        keys = _distinguishing(row, configs)
        texts = [f"{key} {plain(getattr(row.config, key))}" for key in keys]
        name = clean(", ".join([label, *texts]))
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names


def _distinguishing(row: Row | Failure, others: Sequence[RunConfig]) -> list[str]:
    """The settings, in their order, that tell a row from others; at most `_SHOWN`.

    Each is the one that tells it from most of those that are still the same. A row that combines
    seeds or folds is not told by these.
    """
    combined = isinstance(row, Row) and row.runs is not None
    left_out = ("model_options", *(("seed", "fold") if combined else ()))
    keys = [key for key in RunConfig.model_fields if key not in left_out]
    chosen: list[str] = []
    while row.config is not None and others and len(chosen) < _SHOWN:
        alike = {
            key: [other for other in others if getattr(other, key) == getattr(row.config, key)]
            for key in keys
        }
        best = min(keys, key=lambda key: len(alike[key]))
        if len(alike[best]) == len(others):
            break
        others = alike[best]
        chosen.append(best)
    return sorted(chosen, key=keys.index)


def data_title(row: Row | Failure) -> str:
    """Which images a row was tested on; only the official ones are called STL-10 alone."""
    if isinstance(row, Failure):  # which does not say whose images they are
        return "" if row.config is None else f"data {row.config.data[:12]}{_training_images(row)}"
    if row.title:
        return f"{row.title}{_training_images(row)}"
    data = row.config.data[:12]
    notes = {"STL-10": "", "demo": f" {data}: drawn images, not STL-10"}
    note = notes.get(row.dataset, f" {data}: not the STL-10 images")
    return clean(f"{row.dataset}{note}, {row.test_images:,} test images{_training_images(row)}")


def _training_images(row: Row | Failure) -> str:
    """How the protocol differs from training on all images but those of validation."""
    config = row.config
    if config is None:
        return ""
    if config.fold is not None:
        shared = row.fold_overlap if isinstance(row, Row) else None
        overlap = "" if shared is None else f", which share {shared:.1%} of their images pairwise"
        return f", each trained on one of the pre-defined folds{overlap}"
    if config.labels_per_class:
        return f", {config.labels_per_class:,} labelled images a class"
    return "" if config.val_fraction else ", last epoch (without validation images)"
