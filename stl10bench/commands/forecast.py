"""What a list of runs will take, before any of it is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.config import RunConfig
from stl10bench.escaping import clean
from stl10bench.terminal import stderr, stdout

if TYPE_CHECKING:
    from stl10bench.data.stl10 import Dataset
    from stl10bench.trials import Known

_FREE = {  # settings without effect on the time of a step
    *("seed", "lr", "backbone_lr", "momentum", "weight_decay", "label_smoothing", "schedule"),
    *("warmup", "step_epochs", "step_gamma"),
}


def show(
    planned: "Sequence[tuple[str, Known]]", data: "Dataset", kind: str, runs_dir: Path
) -> None:
    """Print the runs, done or missing; minutes are known, or measured on a few steps."""
    from stl10bench import estimate, runs

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run")
    table.add_column("state")
    table.add_column("minutes", justify="right")
    left = 0.0
    measured: dict[str, float] = {}
    with stderr().status("taking a few steps of each model"):
        for name, (_, config, row) in planned:
            title = escape(clean(name))
            if config is None or (row is not None and "error" in row):
                table.add_row(title, escape(clean(f"failed: {row and row['error']}")), "")
            elif row is not None:
                table.add_row(title, "done", f"{row['train_seconds'] / 60:.1f}")
            else:
                alike = _alike(config)
                if alike.name not in measured:
                    measured[alike.name] = estimate.seconds(alike, data, kind) / 60
                minutes = measured[alike.name]
                left += minutes
                state = runs.status(runs_dir / config.name)["state"]
                state = "missing" if state == "new" else state
                table.add_row(title, state, f"~{minutes:.1f}")
    stdout().print(table)
    stdout().print(f"about {left:.1f} minutes are left to do", highlight=False)


def _alike(config: RunConfig) -> RunConfig:
    """One config for all that take as long."""
    defaults = {key: RunConfig.model_fields[key].default for key in _FREE}
    fold = None if config.fold is None else 0
    return config.model_copy(update={**defaults, "fold": fold})
