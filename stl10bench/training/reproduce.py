"""A stored run -> the same run again, and whether its bits, or only its statistics, agree."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from stl10bench.config import RunConfig, make_config
from stl10bench.core import files
from stl10bench.core.device import choose_device
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.data.load import open_data
from stl10bench.metrics.significance import count_pairs, decode_hits, encode_hits, mcnemar_p
from stl10bench.models import checkpoint
from stl10bench.results import predictions
from stl10bench.results.rows import read_row
from stl10bench.training.resolve import check_settings
from stl10bench.training.run import train

_MADE_ON = ("device", "cpu", "threads", "processes", "python", "libraries", "version", "commit")


class Outcome(NamedTuple):
    """What became of a run that was made again."""

    bits: bool  # whether the weights and all predictions are equal, bit by bit
    p: float  # exact McNemar, for the accuracies on the same test images
    first: dict[str, Any]  # the stored row
    second: dict[str, Any]  # the new one
    differences: dict[str, tuple[Any, Any]]  # of what the rows were made on: stored, new


def reproduce_run(
    folder: Path, runs_dir: Path, *, console: Console | None = None, **where: Any
) -> Outcome:
    """Train the run of a run folder again, below `runs_dir`, and compare.

    `where` are `api.train`'s keywords that say where data and weights are and what computes. A
    copy that is finished already is compared as it is. Raises UsageError, with what differs, when
    data or weights are not those of the run, and what `api.train` raises.
    """
    row = read_row(folder / "result.json")
    config = make_config(files.read_json(folder / "config.json", CheckpointError))
    if runs_dir.resolve() == folder.parent.resolve():
        raise UsageError(f"{runs_dir} holds the run itself: the copy needs another folder")
    check_reproducible(config, **where)
    settings = {
        key: value
        for key, value in config.model_dump().items()
        if key not in {"model", "data", "weights"}
    }
    again = train(config.model, runs_dir=runs_dir, console=console, **where, **settings)
    copy = runs_dir / again["run"]
    theirs, ours = (predictions.read(one / "predictions.safetensors") for one in (folder, copy))
    hits = [decode_hits(encode_hits(one.logits, one.labels)) for one in (theirs, ours)]
    return Outcome(
        bits=_same_weights(folder.parent / row["checkpoint"], runs_dir / again["checkpoint"])
        and np.array_equal(theirs.logits, ours.logits),
        p=mcnemar_p(count_pairs(hits[0], hits[1], len(ours.labels))),
        first=row,
        second=again,
        differences={
            key: (row.get(key), again.get(key))
            for key in _MADE_ON
            if row.get(key) != again.get(key)
        },
    )


def check_reproducible(config: RunConfig, **where: Any) -> None:
    """Raise UsageError unless data and weights give the run's config again."""

    data = open_data(
        where.get("dataset", "stl10"),
        where.get("data_dir"),
        download=False,
        verify=where.get("verify", True),
        console=Console(quiet=True),
    )
    if data.fingerprint != config.data:
        raise UsageError(
            f"the run was made from data {config.data[:12]}, {data.folder} holds "
            f"{data.fingerprint[:12]}: give its --dataset and --data-dir"
        )
    _, weights = check_settings(
        config.model,
        weights=where.get("weights"),
        pretrained=config.weights != "none",
        settings={"model_options": config.model_options},
    )
    if weights.source != config.weights:
        raise UsageError(
            f"the run began from weights {config.weights}, these are {weights.source}: give "
            "--weights FILE with those"
        )
    choose_device(where.get("device", "auto"))


def _same_weights(first: Path, second: Path) -> bool:
    theirs, ours = (checkpoint.load(path)[0] for path in (first, second))
    return theirs.keys() == ours.keys() and all(theirs[key].equal(ours[key]) for key in ours)
