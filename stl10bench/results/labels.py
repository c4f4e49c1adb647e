"""Rows -> what a reader calls them: the model, and what tells it from the rows beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stl10bench.config import RunConfig
from stl10bench.core.console import clean
from stl10bench.results.columns import plain
from stl10bench.results.rows import Failure, Row

_SHOWN = 3  # settings that tell rows of one model apart
_LONGEST = 20  # characters of a setting's value
_NO_WORDS = ("data", "weights", "unlabeled")  # fingerprints, that say nothing alone
_WITHOUT = {"ema": "no EMA", "unlabeled": "no unlabelled images", "labels_per_class": "all labels"}


def row_label(row: Row | Failure) -> str:
    """The model as a reader knows it: its name, what is trained, and its options.

    It is the same whatever other rows there are.
    """
    options = row.config.model_options if row.config is not None else {}
    marks = [
        f"{key} {plain(row.model_options[key])}" for key in options if key in row.model_options
    ]
    marks = [mark for mark in marks if not mark.startswith("freeze ")]
    if isinstance(row, Row) and row.selection == "last epoch":
        marks.append("last epoch")
    return model_label(row, marks)


def row_labels(rows: Sequence[Row | Failure]) -> list[str]:
    """The label of each row, by `tell_apart`; rows that combine seeds or folds hide these."""
    combined = any(isinstance(row, Row) and row.runs is not None for row in rows)
    left_out = {"model", "model_options", "method", "method_options", "freeze", "unlabeled_data"}
    left_out |= {"seed", "fold", "k_fold_part"} if combined else set()
    settings = []
    for row in rows:
        config = {} if row.config is None else dict(row.config)
        given = config.get("method_options", {})
        options = row.method_options if isinstance(row, Row) else given
        values = {**config, **row.model_options, **options}
        settings.append({key: value for key, value in values.items() if key not in left_out})
    return tell_apart([clean(model_label(row)) for row in rows], settings)


def model_label(row: Row | Failure, marks: Sequence[str] = ()) -> str:
    """The model's name, and in brackets what is trained of a backbone, and `marks`."""
    method = "supervised" if row.config is None else row.config.method
    tuned: list[str] = [] if method == "supervised" else [method]
    if "freeze" in row.model_options and not tuned:
        from_scratch = isinstance(row, Row) and not row.pretrained
        fine_tuned = "from scratch" if from_scratch else "fine-tuned"
        tuned.append("frozen" if row.model_options["freeze"] else fine_tuned)
    baseline = ["baseline"] * (isinstance(row, Row) and row.baseline)
    source = [row.source] if isinstance(row, Row) and row.source else []
    all_marks = [*tuned, *marks, *baseline, *source]
    return f"{row.model} ({', '.join(all_marks)})" if all_marks else row.model


def tell_apart(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each name that no other has: the name, what differs among equal names, a number.

    Up to `_SHOWN` settings that vary are all said. Of more, those in which one differs from the
    most common value, the `_SHOWN` that vary most; what has only common values is told by the
    settings in which several others differ from it.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    labels = list(names)
    for name, group in places.items():
        texts = [{key: _text(key, x) for key, x in settings[place].items()} for place in group]
        seen: Counter[str] = Counter()
        for place, differing in zip(group, _differing(texts), strict=True):
            label = clean(", ".join([name, *differing]))
            seen[label] += 1
            labels[place] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    return labels


def _differing(texts: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Of the settings of each, as texts, those that tell it from the others."""
    keys = dict.fromkeys(key for each in texts for key in each)
    counts = {key: Counter(each[key] for each in texts if key in each) for key in keys}
    varying = [key for key in keys if len(counts[key]) > 1]
    if len(varying) <= _SHOWN:  # what one row leaves out, a reader takes from the row above
        return [[each[key] for key in varying if key in each] for each in texts]
    usual = {}
    for key in varying:
        (text, most), (_, second) = counts[key].most_common(2)
        usual[key] = text if most > second else None
    chosen = []
    for each in texts:
        present = [key for key in varying if key in each]
        differing = [key for key in present if each[key] != usual[key]]
        if not differing:  # beside one run with adam, all others are not called sgd
            rest = {key: counts[key].total() - counts[key][each[key]] for key in present}
            differing = [key for key in present if rest[key] > 1] or present
        widest = sorted(differing, key=lambda key: -len(counts[key]))[:_SHOWN]
        chosen.append([each[key] for key in differing if key in widest])
    return chosen


def _text(key: str, value: Any) -> str:
    """A setting in a label: `lr 1e-4`, but a word alone where it says what it is: `adam`."""
    if key == "precision" and value == "no":
        return "fp32"
    if value is None:
        return _WITHOUT.get(key, f"no {key.replace('_', ' ')}")
    is_word = isinstance(value, str) and key not in _NO_WORDS and value != "auto"
    return plain(value) if is_word else f"{key.replace('_', ' ')} {plain(value)[:_LONGEST]}"


def data_title(rows: Sequence[Row | Failure]) -> str:
    """Which images the rows of one protocol were tested and trained on."""
    row = rows[0]
    if row.config is None:
        return ""
    labelled = _labelled_images(row, row.config)
    folds = {(each.config and each.config.fold, _is_one_run(each)) for each in rows}
    if row.config.fold is not None and folds == {(row.config.fold, True)}:
        labelled = f", trained on fold {row.config.fold}"
    unlabelled = "; unlabelled images are used too" * (row.config.unlabeled is not None)
    # A failure does not say whose images its data are.
    data = tested_on(row) if isinstance(row, Row) else f"data {row.config.data[:12]}"
    return f"{data}{labelled}{unlabelled}"


def _is_one_run(row: Row | Failure) -> bool:
    return isinstance(row, Failure) or (row.runs or 1) == 1


def tested_on(row: Row) -> str:
    """Which images a row was tested on; only the official ones are called STL-10 alone."""
    if row.title:
        return row.title
    data = row.config.data[:12]
    notes = {"STL-10": "", "demo": f" {data}: drawn images, not STL-10"}
    note = notes.get(row.dataset, f" {data}: not the STL-10 images")
    return clean(f"{row.dataset}{note}, {row.test_images:,} test images")


def _labelled_images(row: Row | Failure, config: RunConfig) -> str:
    """How the protocol differs from training on all images but those of validation."""
    if config.fold is not None:
        shared = row.fold_overlap if isinstance(row, Row) else None
        overlap = "" if shared is None else f", which share {shared:.1%} of their images pairwise"
        return f", each trained on one of the pre-defined folds{overlap}"
    if config.k_fold is not None:
        return f", {config.k_fold}-fold cross-validation: each run validates on another part"
    if config.labels_per_class:
        return f", {config.labels_per_class:,} labelled images per class"
    return "" if config.val_fraction else ", last epoch (without validation images)"


def common_title(rows: Sequence[Row]) -> str:
    """Which images rows were tested on; and trained on, where this is the same for all of them."""
    titles = {data_title([row]) for row in rows}
    return titles.pop() if len(titles) == 1 else tested_on(rows[0])


def trained_on(row: Row) -> str:
    """Which images a row was trained on, as a cell: fold 3 and unlabelled images."""
    config = row.config
    if config.fold is not None:
        images = f"fold {config.fold}"
    elif config.k_fold is not None:
        images = f"all labels but part {config.k_fold_part} of {config.k_fold}"
    elif config.labels_per_class is not None:
        images = f"{config.labels_per_class:,} labels per class"
    else:
        images = "all labels" if config.val_fraction else "all labels, last epoch"
    return images + " and unlabelled images" * (config.unlabeled is not None)
