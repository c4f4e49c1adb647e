"""What the commands do, for Python: the same settings in, the same rows out."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from stl10bench import recipes, runs
from stl10bench.config import Limits, RunConfig, make_config, make_limits
from stl10bench.data.datasets import open_data
from stl10bench.errors import CheckpointError, DivergedError, UsageError, unknown
from stl10bench.models import registry
from stl10bench.models import weights as model_weights
from stl10bench.models.weights import Weights

SPLITS = ("test", "train", "val")


def train(
    model: str,
    *,
    recipe: str = recipes.DEFAULT,
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
    config, start = check(
        model, recipe=recipe, weights=weights, pretrained=pretrained, settings=settings
    )
    console = console or Console(quiet=True)
    data = open_data(dataset, data_dir, download=download, verify=verify, console=console)

    from stl10bench import device as machine

    kind = machine.choose_device(device)
    config = resolve(config, data.fingerprint, start, kind)
    folder = Path(runs_dir) / config.name
    if not overwrite and (row := runs.ended(folder, config)):
        console.print(f"{folder} is finished already: --overwrite trains it again", markup=False)
        return row

    from stl10bench import failures, tracking, training

    tracking.check_tracker(tracker)
    if compile:
        machine.check_compiler(kind)
    if deterministic:
        machine.be_deterministic()
    start = model_weights.fetch(start)
    machine.set_threads(threads)
    machine.keep_freed_memory()
    accelerator = machine.make_accelerator(
        kind, config.precision, tracker, folder, timeout_minutes=limits.timeout_minutes
    )
    main = accelerator.is_main_process
    with (
        runs.owned(folder, config, overwrite=overwrite) if main else nullcontext(),
        failures.named(accelerator, config, limits.timeout_minutes),
    ):
        accelerator.wait_for_everyone()  # until the folder is there, and ours
        console.print(machine.describe(accelerator, config.precision), markup=False)
        return training.run(
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
    recipe: str = recipes.DEFAULT,
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
    if registry.backbone(model) is not None:
        raise UsageError(f"model {model!r} has a backbone: only small models are stacked")
    checked = [check(model, recipe=recipe, settings={**settings, **own})[0] for own in members]
    data = open_data(dataset, data_dir, download=False, verify=verify, console=console)

    from stl10bench import device as machine

    kind = machine.choose_device(device)
    configs = [resolve(config, data.fingerprint, Weights(), kind) for config in checked]
    done = {c.name: _member_ended(Path(runs_dir) / c.name, c) for c in configs}
    missing = list({c.name: c for c in configs if done[c.name] is None}.values())
    if missing:
        from stl10bench import stack, tracking

        tracking.check_tracker(tracker)
        stack.check(missing)
        machine.set_threads(threads)
        machine.keep_freed_memory()
        accelerator = machine.make_accelerator(kind, missing[0].precision, tracker, Path(runs_dir))
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
        return runs.ended(folder, config)
    except DivergedError as error:
        return {"model": config.model, "run": folder.name, "error": str(error)}


def evaluate(
    checkpoint: str | Path,
    *,
    split: str = "test",
    dataset: str = "stl10",
    data_dir: str | Path | None = None,
    verify: bool = True,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on a split (test, train, or val: its own hold-out); returns the row.

    Needs only the file and the data. Raises CheckpointError, DataError, UsageError.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: runs keep theirs as <run>/best.safetensors")
    data = open_data(
        dataset, data_dir, download=False, verify=verify, console=console or Console(quiet=True)
    )

    from stl10bench import device as machine
    from stl10bench import evaluation
    from stl10bench.predict import load

    kind = machine.choose_device(device)
    machine.set_threads(threads)
    machine.keep_freed_memory()
    predictor = load(path)
    accelerator = machine.make_accelerator(kind, predictor.header.config.precision, "none", None)
    return {
        **evaluation.test(predictor, accelerator, data, split=split),
        "checkpoint": str(path),
    }


def check(
    model: str,
    *,
    recipe: str = recipes.DEFAULT,
    weights: str | Path | None = None,
    pretrained: bool = True,
    settings: Mapping[str, Any],
) -> tuple[RunConfig, Weights]:
    """The config of a run, so far as it is known before torch is imported, and its weights.

    Raises UsageError for names and values that cannot be, CheckpointError for unreadable weights.
    """
    registry.check_name(model)
    given = {key: value for key, value in settings.items() if key in RunConfig.model_fields}
    options = {key: value for key, value in settings.items() if key not in RunConfig.model_fields}
    options = {**given.pop("model_options", {}), **options}
    frozen = None
    if registry.backbone(model) is not None:
        frozen = registry.check_freeze(options.get("freeze", True))
    base = recipes.settings(recipe, model, frozen=frozen)
    options = {**base.get("model_options", {}), **options}
    if given.get("fold") is not None:
        base = {**base, "val_fraction": 0.0}
    config = make_config({**base, **given, "model": model, "model_options": options})
    if config.cache_views and not frozen:
        raise UsageError(
            f"cache_views = {config.cache_views}: only the features of a frozen backbone stay the "
            "same; use --freeze with one, or leave it out"
        )
    file = None if weights is None else Path(weights)
    return config, model_weights.choose(model, file=file, pretrained=pretrained, frozen=frozen)


def resolve(config: RunConfig, fingerprint: str, start: Weights, device: str) -> RunConfig:
    """The config with everything filled in that its name is made of: data, weights, precision."""
    from stl10bench.device import choose_precision

    precision = choose_precision(
        config.precision,
        device,
        config.model,
        image_size=config.image_size,
        frozen=bool(registry.check_options(config.model, config.model_options).get("freeze")),
    )
    return make_config(
        {
            **config.model_dump(),
            "model_options": registry.changed_options(config.model, config.model_options),
            "data": fingerprint,
            "weights": start.source,
            "precision": precision,
        }
    )
