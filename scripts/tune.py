"""Settings of a model, tried on validation images: how `tuned` and `fast` were chosen.

    python scripts/tune.py MODEL --data-dir DIR [--weights FILE] [--log FILE] "lr=3e-3 ema=0.99" ...

Each argument after the model is one run's settings, as key=JSON: what differs from the recipe. A
fifth of the training images is for validation (of a tenth, as in a run, 500 images, two settings
1.5 points apart are a toss-up). The test split is out of reach: see `Hidden`. The log has a line of
JSON for each run, with its curves; `python scripts/tune.py --figure FILE --log FILE` draws them.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from matplotlib.figure import Figure
from rich.console import Console

from stl10bench.config import make_config
from stl10bench.data.stl10 import Split
from stl10bench.models.factory import check_options
from stl10bench.plots import style
from stl10bench.results import history
from stl10bench.results.labels import tell_apart
from stl10bench.training import run
from stl10bench.training.resolve import is_frozen


class TestSplitHidden(Exception):  # noqa: N818  (no error: a run that has trained ends with it)
    """The test split was asked for."""


class Hidden(Split):
    """A test split that nobody can read."""

    def __init__(self) -> None:
        """Without images or labels."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise TestSplitHidden(name)


def main() -> None:
    """Print a line for each setting, or draw a log."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("settings", nargs="*", help='e.g. "epochs=20 mixup=0.2"; "" for the recipe')
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--recipe", default="tuned")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--figure", type=Path, help="draw the curves of the log, and train nothing")
    parser.add_argument("--verbose", action="store_true", help="print every epoch")
    arguments = parser.parse_intermixed_args()
    if arguments.figure is not None:
        if arguments.log is None:
            parser.error("--figure needs --log: the file whose curves it draws")
        results = [json.loads(line) for line in arguments.log.read_text().splitlines()]
        style.save(curves(results), arguments.figure, dpi=90)
    for text in arguments.settings:
        result = attempt(arguments, parse(text))
        print(summary(text, result), flush=True)
        if arguments.log is not None:
            with arguments.log.open("a") as log:
                log.write(json.dumps(result) + "\n")


def parse(text: str) -> dict[str, Any]:
    """`key=JSON` words -> settings; what is no JSON is a string."""
    settings: dict[str, Any] = {}
    for word in text.split():
        key, _, value = word.partition("=")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


def attempt(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Train with the settings; the validation curve and what it cost."""
    console = Console(quiet=not arguments.verbose)
    with tempfile.TemporaryDirectory() as folder:
        job, dataset, weights = run.prepare(
            arguments.model,
            console,
            recipe=arguments.recipe,
            weights=arguments.weights,
            data_dir=arguments.data_dir,
            verify=False,
            tracker="none",
            threads=arguments.threads,
            runs_dir=Path(folder),
            **{"val_fraction": 0.2, **settings},
        )
        started = time.monotonic()
        with suppress(TestSplitHidden):  # what it ends with: its last step is the test
            run.train_prepared(job, dataclasses.replace(dataset, test=Hidden()), weights, console)
        seconds = time.monotonic() - started
        curves = history.read(job.folder)
    if not curves.epochs:
        sys.exit("the run asked for the test split before its first epoch: it cannot be tuned here")
    return {
        "model": arguments.model,
        "recipe": arguments.recipe,
        "settings": settings,
        "config": job.config.changed(),
        "load": os.getloadavg()[0],
        "seconds": round(seconds, 1),
        **{
            key.replace("/", "_"): [round(value, 4) for value in curves.series(key)]
            for key in ("train/accuracy", "val/accuracy", "val/loss")
        },
    }


def summary(text: str, result: dict[str, Any]) -> str:
    """One line: the best epoch's validation accuracy, and the last's."""
    curve, train = result["val_accuracy"], result["train_accuracy"]
    best = max(range(len(curve)), key=curve.__getitem__)
    return (
        f"{max(curve):.4f} (epoch {best + 1}/{len(curve)}, last {curve[-1]:.4f}, loss "
        f"{result['val_loss'][best]:.3f}, train {train[-1]:.3f}) {result['seconds']:.0f} s  {text}"
    )


@style.figure_style()
def curves(results: list[dict[str, Any]]) -> Figure:
    """The validation accuracy over the epochs: a panel a model, a line for each of its settings.

    Without those of methods that take no steps, whose one figure is no curve.
    """
    results = [result for result in results if make_config(result["config"]).takes_steps]
    kinds = [kind(result) for result in results]
    figure = Figure(figsize=(9, 3 * len(set(kinds))))
    panels = figure.subplots(len(set(kinds)), squeeze=False).flat
    for axes, name in zip(panels, sorted(set(kinds)), strict=True):
        of_kind = [result for result, its in zip(results, kinds, strict=True) if its == name]
        of_kind.sort(key=lambda result: -max(result["val_accuracy"]))
        bests = [f"{max(result['val_accuracy']):.3f}" for result in of_kind]
        labels = tell_apart([""] * len(of_kind), [all_settings(result) for result in of_kind])
        for result, best, label, colour in zip(of_kind, bests, labels, style.COLOURS, strict=False):
            curve = result["val_accuracy"]
            legend = best + label.removeprefix(",")
            axes.plot(range(1, len(curve) + 1), curve, ".-", color=colour, label=legend)
        axes.set_title(name)
        axes.set_ylabel("validation accuracy")
        style.over_epochs(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
    return figure


def kind(result: dict[str, Any]) -> str:
    """The model, and of a backbone whether it is frozen."""
    kinds = {None: "", True: " (frozen)", False: " (fine-tuned)"}
    return f"{result['model']}{kinds[is_frozen(make_config(result['config']))]}"


def all_settings(result: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, defaults included, and the model's own beside them."""
    settings = make_config(result["config"]).model_dump()
    return settings | check_options(result["model"], settings.pop("model_options"))


if __name__ == "__main__":
    main()
