"""Options of `stl10bench train`, or a job -> a row: the front door of a run.

torch takes seconds to import, so what is wrong with the settings or the data is said before.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from stl10bench.config import DEFAULT_RECIPE, SELF_SUPERVISED, Limits, make_limits
from stl10bench.core.errors import DataError, UsageError
from stl10bench.core.launcher import check_environment
from stl10bench.data.load import open_data
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.models import hub_files, registry
from stl10bench.models.pretrained import (
    NO_WEIGHTS,
    Weights,
    choose_weights,
    fetch_weights,
    find_weights,
)
from stl10bench.results.rows import Row
from stl10bench.training.job import OPTIONS, Job, make_job
from stl10bench.training.resolve import (
    check_settings,
    fit_batch,
    is_frozen,
    resolve_config,
    unlabelled_fingerprint,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stl10bench.results.pretraining import Pretraining
    from stl10bench.training.lr_finder import RangeTest

_Result = TypeVar("_Result")


def train(
    model: str,
    *,
    recipe: str = DEFAULT_RECIPE,
    weights: str | Path | None = None,
    pretrained: bool = True,
    console: Console | None = None,
    **options: Any,
) -> Row:
    """Train `model` and return its row; a run that is finished already returns its stored row.

    A run that was interrupted resumes from its newest checkpoint. `options` are the fields of Job
    (`dataset`, `data_dir`, `runs_dir`, `device`, `tracker`, ...), of RunConfig (`epochs`, `lr`,
    `image_size`, ...) and of Limits (`checkpoint_minutes`, ...), and the model's own options
    (`freeze`, `hidden`, `dropout`, ...); each setting beats the recipe. Progress goes to `console`,
    by default nowhere. `weights` is a file of safetensors (timm's keys, or a checkpoint of a run),
    a run, or hf-hub:OWNER/NAME, which `model` may be as well. Raises a BenchError whose text says
    what to do.
    """
    console = console or Console(quiet=True)
    options |= {"recipe": recipe, "weights": weights, "pretrained": pretrained}
    return train_prepared(*prepare(model, console, **options), console)


def find_rate(
    model: str,
    *,
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 10.0,
    console: Console | None = None,
    **options: Any,
) -> "RangeTest":
    """What the loss of `model` does in `steps` steps at rates that rise from `lowest` to `highest`.

    `options` are those of `train`; there is no run folder. Raises a BenchError, as `train` does.
    """
    console = console or Console(quiet=True)
    job, dataset, start = prepare(model, console, **options)
    if not job.config.takes_steps:
        raise UsageError(f"--method {job.config.method} has no learning rate: leave it out")
    from stl10bench.training.interrupt import restored_signals, translate_errors
    from stl10bench.training.lr_finder import Rates, range_test

    accelerator, start = _start(job, start)
    timeout = job.limits.timeout_minutes
    with restored_signals(), translate_errors(accelerator, job.config, timeout):
        quiet = console if accelerator.is_main_process else Console(quiet=True)
        rates = Rates(steps, lowest, highest)
        return range_test(job, accelerator, dataset, start, quiet, rates)


def prepare(
    model: str,
    console: Console,
    *,
    recipe: str = DEFAULT_RECIPE,
    weights: str | Path | None = None,
    pretrained: bool = True,
    pretraining: bool = False,
    **options: Any,
) -> tuple[Job, Dataset, Weights]:
    """The job that the options of `train` describe, complete; its data and initial weights.

    With `pretraining` the options are those of `pretrain`.
    """
    check_environment()
    limits = {key: options.pop(key) for key in Limits.model_fields if key in options}
    how = {key: options.pop(key) for key in OPTIONS if key in options}
    if how.get("plugin") is not None:
        registry.load_plugin(how["plugin"])
    file = None
    if model.startswith(hub_files.HUB):
        if weights is not None or not pretrained:
            raise UsageError(
                f"{model} has its own weights: leave out --weights and --no-pretrained"
            )
        model, stored, file = hub_files.find_model(model)
        options = {**stored, **options}
    elif weights is not None:
        file = find_weights(
            weights, Path(how.get("runs_dir", Job.model_fields["runs_dir"].default))
        )
    config, start = check_settings(
        model,
        recipe=recipe,
        weights=file,
        pretrained=pretrained,
        pretraining=pretraining,
        settings=options,
    )
    how |= {"limits": make_limits(limits), "recipe": recipe}
    job = make_job(config, weights=start.file, **how)
    dataset = _open(job, console)
    from stl10bench.core.device import choose_device

    device = choose_device(job.device)
    config = resolve_config(config, dataset, start, device)
    if not pretraining:
        images = len(training_rows(config, dataset)[0])
        asked, config = config.batch_size, fit_batch(config, options, images)
        if config.batch_size < asked:
            console.print(
                f"Batch size {config.batch_size}, not the recipe's {asked}: there are {images} "
                "training images.",
                soft_wrap=True,
            )
    return job.model_copy(update={"config": config, "device": device}), dataset, start


def run_job(job: Job, console: Console) -> Row:
    """Train the run of a job whose config is complete, and return its row.

    Raises DataError or UsageError for data or weights that are not those of the config, and what
    `train` raises.
    """
    if job.plugin is not None:
        registry.load_plugin(job.plugin)
    dataset = _open(job, console)
    if dataset.fingerprint != job.config.data:
        raise DataError(
            f"{dataset.folder} contains data {dataset.fingerprint[:12]}, but the run used "
            f"{job.config.data[:12]}: pass the run's --dataset and --data-dir"
        )
    unlabelled = unlabelled_fingerprint(job.config, dataset)
    if unlabelled != job.config.unlabeled_data:
        raise DataError(
            f"{dataset.folder}/unlabeled_X.bin contains data {unlabelled[:12]}, but the run used "
            f"{job.config.unlabeled_data[:12]}: pass the run's --data-dir"
        )
    start = choose_weights(
        job.config.model,
        file=job.weights,
        pretrained=job.config.weights != NO_WEIGHTS,
        frozen=is_frozen(job.config),
    )
    if start.source != job.config.weights:
        raise UsageError(
            f"the run started from weights {job.config.weights}, but these are {start.source}: "
            "pass the run's --weights FILE"
        )
    return train_prepared(job, dataset, start, console)


def _open(job: Job, console: Console) -> Dataset:
    return open_data(
        job.dataset, job.data_dir, download=job.download, verify=job.verify, console=console
    )


def train_prepared(job: Job, dataset: Dataset, start: Weights, console: Console) -> Row:
    """Train in the run folder, which is ours meanwhile, unless its row is there already."""
    from stl10bench.training import probe, tracking, trainer

    folder = job.folder
    if not job.overwrite and (row := folder.ended(job.config)) is not None:
        text = f"{folder.path} is finished. Pass --overwrite to train it again."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        if "WANDB_SWEEP_ID" in os.environ:  # its agent waits for the metric
            tracking.replay(job, dataset, row, console)
        return row
    method = trainer.train if job.config.takes_steps else probe.train
    return _in_its_folder(method, job, dataset, start, console)


def pretrain(
    backbone: str,
    *,
    weights: str | Path | None = None,
    console: Console | None = None,
    **options: Any,
) -> "Pretraining":
    """Pretrain the backbone of a model by SimCLR, on images without labels.

    `options` are those of `train`; the run's name or folder is then what its `weights` take. It
    begins with random weights unless `weights` are given. A run that is finished already returns
    what it left. Raises a BenchError, as `train` does.
    """
    console = console or Console(quiet=True)
    options = {"pretrained": weights is not None, **options, "method": SELF_SUPERVISED}
    if registry.backbone_name(backbone) is not None:
        options["freeze"] = False
    prepared = prepare(backbone, console, weights=weights, pretraining=True, **options)
    from stl10bench.training import pretrain as pretraining

    job = prepared[0]
    if not job.overwrite and (finished := job.folder.pretrained(job.config)) is not None:
        text = f"{job.folder.path} is finished. Pass --overwrite to pretrain it again."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return finished
    return _in_its_folder(pretraining.pretrain, *prepared, console)


def _in_its_folder(
    method: Callable[..., _Result], job: Job, dataset: Dataset, start: Weights, console: Console
) -> _Result:
    """What a method returns that works in the run folder, which is ours meanwhile."""
    from stl10bench.core.device import describe_machine
    from stl10bench.core.waiting import considerate_threads
    from stl10bench.training import tracking
    from stl10bench.training.interrupt import restored_signals, translate_errors

    folder = job.folder
    tracking.check_trackers(job)
    accelerator, start = _start(job, start)
    main = accelerator.is_main_process
    mirrors = tracking.make_mirrors(job, dataset, console) if main else []
    with (
        restored_signals(),
        folder.owned(job.config, overwrite=job.overwrite) if main else nullcontext(),
        translate_errors(accelerator, job.config, job.limits.timeout_minutes),
        considerate_threads(),
    ):
        accelerator.wait_for_everyone()  # until the folder is there, and ours
        console.print(describe_machine(accelerator, job.config.precision), highlight=False)
        quiet = Console(quiet=True)
        return method(job, accelerator, dataset, start, console if main else quiet, mirrors)


def _start(job: Job, start: Weights) -> "tuple[Accelerator, Weights]":
    """The processes and the device that a job computes with, and its weights, fetched."""
    from stl10bench.core import device as machine

    if job.compile:
        machine.check_compiler(job.device)
    if job.deterministic:
        machine.be_deterministic()
    start = fetch_weights(start)
    machine.set_threads(job.threads)
    machine.keep_freed_memory()
    accelerator = machine.make_accelerator(
        machine.choose_device(job.device),
        job.config.precision,
        timeout_minutes=job.limits.timeout_minutes,
    )
    machine.share_threads(accelerator)
    return accelerator, start
