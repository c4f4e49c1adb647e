"""Finished runs on the same test images -> their differences in accuracy, pair by pair."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.metrics import calibration
from stl10bench.metrics.significance import (
    PairedCounts,
    bootstrap_interval,
    count_pairs,
    decode_hits,
    encode_hits,
    holm,
    mcnemar_p,
)
from stl10bench.results import predictions
from stl10bench.results.ranking import input_rule
from stl10bench.results.rows import Row, read_row
from stl10bench.results.run_folder import find
from stl10bench.results.tables import result_files


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


def finished_folders(runs_dir: Path, names: Sequence[str], *, fewest: int = 2) -> list[Path]:
    """The run folders that `names` mean; all finished ones below `runs_dir` without names.

    A name is a run's below `runs_dir`, the path of a run folder, or the beginning of one run's
    name. Raises UsageError for a name that is none of these, and for fewer than `fewest` runs.
    """
    every = [path.parent for path in result_files(runs_dir)]
    found = [find(runs_dir, name) for name in names] if names else every
    for folder in found:
        if not (folder / "result.json").is_file():
            raise UsageError(f"{folder} has no result.json: the run is not finished")
    folders = list({folder.resolve(): folder for folder in found}.values())
    if len(folders) < fewest:
        where = "given" if names else f"in {runs_dir}"
        raise UsageError(f"two finished runs or more can be compared; {len(folders)} {where}")
    return folders


def load_run(folder: Path) -> Run:
    """A finished run; raises CheckpointError where its predictions are not those of its row."""
    row = read_row(folder / "result.json")
    found = run_predictions(folder, row)
    hits = encode_hits(found.logits, found.labels)
    return Run(row, found.labels.tobytes(), decode_hits(hits))


def run_predictions(folder: Path, row: Row) -> predictions.Predictions:
    """What a finished run predicted; raises CheckpointError where it is not what its row says."""
    path = folder / "predictions.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: train the run again with --overwrite, or leave it out"
        )
    found = predictions.read(path)
    loss = calibration.nll(found.logits.astype(np.float64), found.labels)
    images = len(found.labels)
    accuracy = int((found.logits.argmax(1) == found.labels).sum()) / images
    if (images, accuracy) != (row["test_images"], row["test_accuracy"]) or (
        math.isfinite(loss)
        and (row["test_loss"] is None or not math.isclose(loss, row["test_loss"], rel_tol=1e-6))
    ):
        raise CheckpointError(
            f"{path} is not of this run: it has {images} images, accuracy {accuracy:.4f} and loss "
            f"{loss:.4f}; result.json says {row['test_images']}, {row['test_accuracy']:.4f} and "
            f"{row['test_loss']}; train it again with --overwrite, or leave it out"
        )
    return found


def check_same_images(runs: Sequence[Run]) -> None:
    """Raise UsageError, with what differs, for runs that did not see the same of the same images.

    The same are: the data (their fingerprint), the test labels, image by image, and the part of
    an image that the model is shown, see `standing.input_rule`. The resolution of that part is the
    model's choice.
    """
    first = runs[0]
    for other in runs[1:]:
        names = clean(f"{first.row['run']} and {other.row['run']}")
        data = [
            clean(f"{one.row['dataset']} {one.row['config']['data'][:12]}")
            for one in (first, other)
        ]
        if first.row["config"]["data"] != other.row["config"]["data"]:
            raise UsageError(
                f"{names} were tested on different data ({data[0]}; {data[1]}): only runs on the "
                "same images can be compared, name those"
            )
        if first.labels != other.labels:
            raise UsageError(
                f"{names} have different test labels in predictions.safetensors, although both "
                f"say {data[0]}: one was edited; train it again with --overwrite"
            )
        rules = [input_rule(one.row) for one in (first, other)]
        if rules[0] != rules[1]:
            raise UsageError(
                f"{names} saw different parts of the images ({rules[0]}; {rules[1]}): only runs "
                "with the same input rule can be compared, name those"
            )


def differences(runs: Sequence[Run], console: Console) -> list[Difference]:
    """Every pair of `runs`, in their order; many take a while, which a bar on `console` shows."""
    pairs = list(combinations(range(len(runs)), 2))
    images = runs[0].row["test_images"]
    counts = [count_pairs(runs[i].hits, runs[j].hits, images) for i, j in pairs]
    intervals = [
        bootstrap_interval(one)
        for one in track(
            counts,
            f"{len(pairs)} pairs",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    ]
    p_values = [mcnemar_p(one) for one in counts]
    tested = zip(pairs, counts, intervals, p_values, holm(p_values), strict=True)
    return [Difference(*pair, one, interval, p, holm) for pair, one, interval, p, holm in tested]
