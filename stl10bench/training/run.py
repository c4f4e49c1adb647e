"""Options of `stl10bench train` -> a row: the front door of a run.

torch takes seconds to import, so what is wrong with the settings or the data is said before.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from stl10bench.config import DEFAULT_RECIPE, Limits, RunConfig, make_limits
from stl10bench.core.errors import DivergedError, UsageError
from stl10bench.data.load import open_data
from stl10bench.models import registry
from stl10bench.models.pretrained import Weights, fetch_weights
from stl10bench.results import run_folder
from stl10bench.training.resolve import check_settings, resolve_config


def train(
    model: str,
    *,
    recipe: str = DEFAULT_RECIPE,
    dataset: str = "stl10",
    data_dir: str | Path | None = None,
    download: bool = False,
    verify: bool = True,
    weights: str | Path | None = None,
    pretrained: bool = True,
    runs_dir: str | Path = "runs",
    tracker: str = "wandb",
    device: str = "auto",
    threads: int | None = None,
    compile: bool = False,  # noqa: A002  as torch's
    deterministic: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train `model` and return its row; a run that is finished already returns its stored row.

    A run that stopped on its way goes on from its newest checkpoint. `settings` are RunConfig's
    fields (`epochs`, `lr`, `image_size`, ...), those of Limits (`checkpoint_minutes`, ...) and the
    model's own options (`freeze`, `hidden`, `dropout`, ...); each beats the recipe. Progress goes
    to `console`, by default nowhere. Raises a BenchError whose text says what to do.
    """
    own = {key: settings.pop(key) for key in list(settings) if key in Limits.model_fields}
    limits = make_limits(own)
    config, start = check_settings(
        model, recipe=recipe, weights=weights, pretrained=pretrained, settings=settings
    )
    console = console or Console(quiet=True)
    data = open_data(dataset, data_dir, download=download, verify=verify, console=console)
    from stl10bench.core.device import (
        be_deterministic,
        check_compiler,
        choose_device,
        describe_machine,
        keep_freed_memory,
        make_accelerator,
        set_threads,
    )
    from stl10bench.training import tracking, trainer
    from stl10bench.training.interrupt import translate_errors

    kind = choose_device(device)
    config = resolve_config(config, data.fingerprint, start, kind)
    folder = Path(runs_dir) / config.name
    if not overwrite and (row := run_folder.ended(folder, config)):
        console.print(f"{folder} is finished already: --overwrite trains it again", markup=False)
        return row

    tracking.check_tracker(tracker)
    if compile:
        check_compiler(kind)
    if deterministic:
        be_deterministic()
    start = fetch_weights(start)
    set_threads(threads)
    keep_freed_memory()
    accelerator = make_accelerator(
        kind, config.precision, tracker, folder, timeout_minutes=limits.timeout_minutes
    )
    main = accelerator.is_main_process
    with (
        run_folder.owned(folder, config, overwrite=overwrite) if main else nullcontext(),
        translate_errors(accelerator, config, limits.timeout_minutes),
    ):
        accelerator.wait_for_everyone()  # until the folder is there, and ours
        console.print(describe_machine(accelerator, config.precision), markup=False)
        return trainer.train(
            config,
            accelerator,
            data,
            folder=folder,
            weights=start,
            compiled=compile,
            limits=limits,
            tracker=tracker,
            console=console if main else Console(quiet=True),
        )


def train_stack(
    model: str,
    members: Sequence[Mapping[str, Any]],
    *,
    recipe: str = DEFAULT_RECIPE,
    dataset: str = "stl10",
    data_dir: str | Path | None = None,
    verify: bool = True,
    runs_dir: str | Path = "runs",
    tracker: str = "wandb",
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train several settings of a small model at once, on the same batches; returns their rows.

    Each of `members` is `settings` of its own, over the common ones: `train_stack("logistic",
    [{"lr": 1e-3}, {"lr": 1e-4}], epochs=5)`. A row is that of `train` up to rounding, marked
    `stacked`; one that is finished already is not trained again; a member that diverged has an
    `error`. Raises UsageError for members that cannot share their batches, and what `train` raises.
    """
    console = console or Console(quiet=True)
    registry.check_name(model)
    if registry.backbone_name(model) is not None:
        raise UsageError(f"model {model!r} has a backbone: only small models are stacked")
    checked = [
        check_settings(model, recipe=recipe, settings={**settings, **own})[0] for own in members
    ]
    data = open_data(dataset, data_dir, download=False, verify=verify, console=console)
    from stl10bench.core.device import (
        choose_device,
        keep_freed_memory,
        make_accelerator,
        set_threads,
    )
    from stl10bench.training import stack, tracking

    kind = choose_device(device)
    configs = [resolve_config(config, data.fingerprint, Weights(), kind) for config in checked]
    done = {c.name: _member_ended(Path(runs_dir) / c.name, c) for c in configs}
    missing = list({c.name: c for c in configs if done[c.name] is None}.values())
    if missing:
        tracking.check_tracker(tracker)
        stack.check(missing)
        set_threads(threads)
        keep_freed_memory()
        accelerator = make_accelerator(kind, missing[0].precision, tracker, Path(runs_dir))
        trained = stack.run(
            missing,
            accelerator,
            data,
            runs_dir=Path(runs_dir),
            tracker=tracker,
            console=console if accelerator.is_main_process else Console(quiet=True),
        )
        done |= {row["run"]: row for row in trained}
    return [row for config in configs if (row := done[config.name])]


def _member_ended(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """`runs.ended`, with a row that has an `error` for a run that diverged."""
    try:
        return run_folder.ended(folder, config)
    except DivergedError as error:
        return {"model": config.model, "run": folder.name, "error": str(error)}
