"""Seconds from the command to the row of a linear probe, and scikit-learn on the same features.

    python scripts/probe_speed.py --data-dir DIR --weights FILE [--model NAME] [--sizes 64,96]

Measure on a machine that does nothing else. For each size: `stl10bench train MODEL --method probe`
with no features kept, again with a knn head (the features are kept by then), and scikit-learn's
LogisticRegression with the penalty that the probe chose, on the features that it kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from stl10bench.config import make_config
from stl10bench.data.load import open_data
from stl10bench.data.splits import training_rows
from stl10bench.models.feature_heads import power_normalise


def main() -> None:
    """Print a table, a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="mobilenetv2")
    parser.add_argument("--sizes", default="64,96,128,192")
    arguments = parser.parse_args()
    print("| px | probe | loss | C | command, s | knn | command again, s | scikit-learn | fit, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            print(measure(arguments, size, Path(folder)), flush=True)


def measure(arguments: argparse.Namespace, size: int, folder: Path) -> str:
    """One line of the table; `folder` is empty and takes the runs and the features."""
    row, seconds = run(arguments, "probe", size, folder)
    other, again = run(arguments, "knn", size, folder)
    accuracy, fit = scikit_learn(arguments.data_dir, row, folder)
    return (
        f"| {size} | {row['test_accuracy']:.4f} | {row['test_loss']:.3f} | "
        f"{1 / row['chosen']['penalty']:g} | {seconds:.1f} | {other['test_accuracy']:.4f} | "
        f"{again:.1f} | {accuracy:.4f} | {fit:.1f} |"
    )


def run(
    arguments: argparse.Namespace, method: str, size: int, folder: Path
) -> tuple[dict[str, Any], float]:
    """The row of a method, and the seconds of its command."""
    command = [sys.executable, "-m", "stl10bench", "train", arguments.model, "--method", method]
    command += ["--image-size", str(size), "--weights", str(arguments.weights), "--no-verify"]
    command += ["--data-dir", str(arguments.data_dir), "--runs-dir", str(folder / "runs")]
    command += ["--tracker", "none", "--json"]
    environment = {**os.environ, "STL10BENCH_CACHE": str(folder / "cache")}
    started = time.monotonic()
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(ended.stdout), time.monotonic() - started


def scikit_learn(data_dir: Path, row: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Test accuracy and seconds of scikit-learn's fit to the features that the probe kept."""
    config = make_config(row["config"])
    console = Console(quiet=True)
    data = open_data("stl10", data_dir, download=False, verify=False, console=console)
    kept = [load_file(file)["features"] for file in (folder / "cache/features").iterdir()]
    by_size = {len(values): power_normalise(values, 0.5).numpy() for values in kept}
    train, test = by_size[len(data.train.labels)], by_size[len(data.test.labels)]
    rows = training_rows(config, data)[0]
    torch.set_num_threads(1)  # scikit-learn has its own
    started = time.monotonic()
    model = LogisticRegression(C=1 / row["chosen"]["penalty"], max_iter=3000)
    model.fit(train[rows], data.train.labels[rows])
    seconds = time.monotonic() - started
    return float(np.mean(model.predict(test) == data.test.labels)), seconds


if __name__ == "__main__":
    main()
