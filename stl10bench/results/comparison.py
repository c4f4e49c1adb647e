"""Finished runs on the same test images -> their differences in accuracy, pair by pair."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from stl10bench.core.console import clean
from stl10bench.core.errors import UsageError
from stl10bench.metrics import significance
from stl10bench.metrics.significance import PairedCounts
from stl10bench.results.labels import model_label
from stl10bench.results.ranking import best_validated, input_rule
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import RunFolder, current_folders, runs_of


class Run(NamedTuple):
    """A finished run: its row, the test split's labels, and what it classified correctly."""

    row: Row
    labels: bytes  # int64 (N,)
    hits: int  # a bit for each image


class Difference(NamedTuple):
    """Two runs of a list by their places in it, and the first's accuracy less the second's."""

    first: int
    second: int
    counts: PairedCounts
    interval: tuple[float, float]  # paired bootstrap, 95 %
    p: float  # exact McNemar
    p_holm: float  # corrected for all pairs of the comparison


def finished_folders(runs_dir: Path, names: Sequence[str], *, fewest: int = 2) -> list[RunFolder]:
    """The run folders that `names` mean; all finished ones below `runs_dir` without names.

    A name is a run's below `runs_dir`, the path of a run folder, the beginning of one run's name,
    or a model's, which means all of its finished runs. One run alone with unlabelled images is
    joined by the one without. Raises UsageError for a name that is none of these, and for fewer
    than `fewest` runs.
    """
    folders: list[RunFolder] = []
    for name in names:
        runs = runs_of(runs_dir, name)
        folders += [folder for folder in runs if folder.is_finished] or runs
    if len(folders) == 1 and fewest == 2 and (without := without_unlabelled(folders[0])):
        if not without.is_finished:
            raise UsageError(
                f"{folders[0].name} has nothing to compare with yet: train the same with "
                "--unlabeled none"
            )
        folders.append(without)
    for folder in folders:
        if not folder.is_finished:
            raise UsageError(f"{folder.path} has no result.json: the run is not finished")
    if not names:
        folders = [folder for folder in current_folders(runs_dir) if folder.is_finished]
    folders = list({folder.path.resolve(): folder for folder in folders}.values())
    if len(folders) < fewest:
        where = "given" if names else f"in {runs_dir}"
        raise UsageError(f"compare needs two finished runs or more; {len(folders)} {where}")
    return folders


def without_unlabelled(folder: RunFolder) -> RunFolder | None:
    """The folder of the run with the same settings but no unlabelled images, trained or not.

    None for a run without any.
    """
    config = folder.config()
    if config.unlabeled is None:
        return None
    return RunFolder(folder.path.parent / config.without_unlabelled().name)


def verdict(run: Run, without: Run) -> str:
    """Whether unlabelled images helped beyond noise: helped by 3.1 points [1.2, 5.0], or no gain.

    On the same test images; the interval is the paired bootstrap's, 95 %.
    """
    check_same_images([run, without])
    counts = significance.count_pairs(run.hits, without.hits, run.row.test_images)
    return gain(counts.difference, significance.bootstrap_interval(counts))


def gain(difference: float, interval: tuple[float, float]) -> str:
    """A difference in accuracy in words: a gain, a loss, or none beyond noise."""
    low, high = (100 * end for end in interval)
    points = 100 * difference
    if low <= 0 <= high:
        return f"no gain: {points:+.1f} points [{low:.1f}, {high:.1f}]"
    if points < 0:
        return f"hurt by {-points:.1f} points [{-high:.1f}, {-low:.1f}]"
    return f"helped by {points:.1f} points [{low:.1f}, {high:.1f}]"


def load_run(folder: RunFolder) -> Run:
    """A finished run; raises CheckpointError where its predictions are not those of its row."""
    row = folder.row()
    predicted = folder.predictions(row)
    return Run(row, predicted.labels.tobytes(), significance.decode_hits(predicted.hits()))


def best_of_each_model(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The run of each model with the highest validation accuracy; all where there is one model.

    Not by the test split, on which they are compared then. Second come the models that are left
    out: of several runs none has a validation accuracy. Raises UsageError where fewer than two
    runs remain.
    """
    models: dict[str, list[Run]] = {}
    for run in runs:
        models.setdefault(model_label(run.row), []).append(run)
    if len(models) == 1:
        return list(runs), []
    best, left_out = [], []
    for model, group in models.items():
        validated = [run for run in group if run.row.val_accuracy is not None]
        if validated or len(group) == 1:
            best.append(min(validated or group, key=lambda run: best_validated(run.row)))
        else:
            left_out.append(f"{clean(model)} ({len(group)} runs)")
    if left_out and len(best) < 2:
        raise UsageError(
            f"{', '.join(left_out)}: which run is the best is not known without validation images; "
            "name the runs to compare, or pass --all (stl10bench table compares seeds and folds)"
        )
    return best, left_out


def check_same_images(runs: Sequence[Run]) -> None:
    """Raise UsageError, with what differs, for runs that did not see the same of the same images.

    The same are: the data (their fingerprint), the test labels, image by image, and the part of
    an image that the model is shown, see `input_rule`. The resolution of that part is the
    model's choice.
    """
    first = runs[0]
    for other in runs[1:]:
        names = clean(f"{first.row.run} and {other.row.run}")
        rows = first.row, other.row
        data = [clean(f"{row.dataset} {row.config.data[:12]}") for row in rows]
        if first.row.config.data != other.row.config.data:
            raise UsageError(
                f"{names} were tested on different data ({data[0]}; {data[1]}): name runs "
                "that were tested on the same images"
            )
        if first.labels != other.labels:
            raise UsageError(
                f"{names} have different test labels in predictions.safetensors, although both "
                f"say {data[0]}: one was edited; train it again with --overwrite"
            )
        rules = [input_rule(row) for row in rows]
        if rules[0] != rules[1]:
            raise UsageError(
                f"{names} saw different parts of the images ({rules[0]}; {rules[1]}): name runs "
                "with the same input rule"
            )


def differences(runs: Sequence[Run], console: Console) -> list[Difference]:
    """Every pair of `runs`, in their order; many take a while, which a bar on `console` shows."""
    pairs = list(combinations(range(len(runs)), 2))
    images = runs[0].row.test_images
    counts = [significance.count_pairs(runs[i].hits, runs[j].hits, images) for i, j in pairs]
    quiet = not console.is_terminal
    shown = track(counts, f"{len(pairs)} pairs", console=console, transient=True, disable=quiet)
    intervals = list(map(significance.bootstrap_interval, shown))
    p_values = list(map(significance.mcnemar_p, counts))
    tested = zip(pairs, counts, intervals, p_values, significance.holm(p_values), strict=True)
    return [Difference(*pair, both, interval, p, holm) for pair, both, interval, p, holm in tested]
