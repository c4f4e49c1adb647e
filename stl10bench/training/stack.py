"""Several settings of one small model -> as many rows, trained on the same batches at once.

Augmentation is most of what a small model costs, so eight settings that share it cost little more
than one. Each member takes the steps that it would take alone, up to rounding.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from stl10bench.config import Limits, RunConfig
from stl10bench.core.errors import DivergedError, UsageError
from stl10bench.core.seeding import DROPOUT, seed_of
from stl10bench.data.loader import augmented_batches
from stl10bench.data.splits import fold_overlap
from stl10bench.data.stl10 import Dataset
from stl10bench.metrics.classification import none_if_not_finite, score
from stl10bench.models import checkpoint
from stl10bench.models.mlp import Head
from stl10bench.models.pretrained import Weights
from stl10bench.results import run_folder
from stl10bench.training.epoch import (
    broken_gradients,
    broken_weights,
    can_skip,
    diverged,
    nan_if_infinite,
)
from stl10bench.training.evaluate import compute_logits
from stl10bench.training.interrupt import Watch
from stl10bench.training.optim import make_optimizer, make_schedule
from stl10bench.training.resume import Best
from stl10bench.training.row import MEASURED
from stl10bench.training.setup import (
    build_random_model,
    create_model,
    load_test_images,
    load_training_images,
)
from stl10bench.training.tracking import Log
from stl10bench.training.trainer import better, final_evaluation

OWN = {  # the settings in which the members may differ; the others make the batches
    *("model_options", "optimizer", "lr", "momentum", "weight_decay", "label_smoothing"),
    *("schedule", "warmup", "step_epochs", "step_gamma"),
}


class Stack(nn.Module):
    """Models that take the same images and return their logits one by one."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor, seed: int) -> list[Tensor]:
        """Logits (N, C) of each member; each draws its dropout from `seed`.

        The products of linear members with the images are one product: alone, each would read the
        images again to compute a few numbers.
        """
        linears = [m.linears[0] for m in self.members if isinstance(m, Head) and not m.dropouts]
        if len(linears) == len(self.members) > 1:
            weight = torch.cat([*(linear.get_parameter("weight") for linear in linears)])
            bias = torch.cat([*(linear.get_parameter("bias") for linear in linears)])
            together = F.linear(images.flatten(1), weight, bias)
            return list(together.tensor_split(len(linears), 1))
        logits = []
        for member in self.members:
            torch.manual_seed(seed)
            logits.append(member(images))
        return logits


def check(configs: Sequence[RunConfig]) -> None:
    """Raise UsageError when the configs cannot share their batches, with what differs."""
    first, *others = (config.model_dump(exclude=OWN) for config in configs)
    for other in others:
        if different := [key for key in first if first[key] != other[key]]:
            key = different[0]
            raise UsageError(
                f"{key} = {first[key]} and {other[key]} cannot be stacked: members may differ in "
                f"{', '.join(sorted(OWN))}; train the others on their own"
            )


def run(
    configs: Sequence[RunConfig],
    accelerator: Accelerator,
    dataset: Dataset,
    *,
    runs_dir: Path,
    tracker: str = "none",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Train and test a model for each config; returns their rows, each also in its run folder.

    A row says how many were `stacked`; its seconds are those of the whole stack. A member that
    diverges has an `error` in place of its row, and the others go on. Nothing reaches the disk
    before the last epoch: a stack takes seconds, and one whose launcher died ends with its epoch.
    A member that another process finished meanwhile keeps the row that it has. Raises UsageError
    for configs that cannot share their batches, and what `training.run` raises.
    """
    check(configs)
    shared, main = configs[0], accelerator.is_main_process
    console = console or Console(quiet=True)
    train, val = load_training_images(shared, dataset, accelerator)
    steps = len(train.labels) // shared.batch_size
    first, normalise, header = create_model(shared, dataset, Weights(), train, accelerator)
    models = [first, *(build_random_model(config, dataset) for config in configs[1:])]
    headers = [header.model_copy(update={"config": config}) for config in configs]
    optimizers = [make_optimizer(*pair) for pair in zip(configs, models, strict=True)]
    learner, *optimizers = accelerator.prepare(Stack(models), *optimizers)
    schedules = [
        make_schedule(config, optimizer.optimizer, steps)
        for config, optimizer in zip(configs, optimizers, strict=True)
    ]

    best: list[Best | None] = [None] * len(configs)
    broken_at = torch.zeros(len(configs), dtype=torch.int64, device=accelerator.device)
    histories: list[list[dict[str, Any]]] = [[] for _ in configs]
    seconds = 0.0
    watch = Watch(accelerator, lambda: 0, Limits())  # signals end it at once: nothing is saved
    started = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{len(configs)} x {shared.model}", total=shared.epochs * steps)
        for epoch in range(1, shared.epochs + 1):
            values = train_epoch(
                learner,
                optimizers,
                schedules,
                augmented_batches(train, normalise, shared, accelerator, epoch=epoch),
                configs,
                accelerator,
                broken_at,
                first_step=(epoch - 1) * steps,
                advance=partial(bar.advance, task),
            )
            seconds += values[0]["seconds"]
            for index, model in enumerate(models):
                broken = bool(broken_weights(model))
                if len(val.labels):
                    logits = compute_logits(
                        model, val.images, normalise, shared.image_size, accelerator
                    )
                    values[index] |= score(logits, val.labels, "val")
                    broken |= not math.isfinite(values[index]["val/loss"])
                if broken and not broken_at[index]:
                    broken_at[index] = epoch * steps
                stored = none_if_not_finite({"epoch": epoch, **values[index], "time": time.time()})
                histories[index].append(stored)
                reached = headers[index].at(epoch, epoch * steps, stored)
                best[index] = better(best[index], reached, model)
            speed = values[0]["images_per_second"]
            console.print(f"epoch {epoch}/{shared.epochs}  {speed:,.0f} images/s", highlight=False)
            watch.check()
    train_seconds = time.monotonic() - started

    test = load_test_images(shared, dataset, accelerator)
    rows: list[dict[str, Any]] = []
    costs: dict[str, dict[str, float]] = {}  # of each kind of layers: measured once
    for config, model, header, chosen, history, broken_step in zip(
        configs, models, headers, best, histories, broken_at.tolist(), strict=True
    ):
        assert chosen is not None  # there is at least one epoch
        folder = runs_dir / config.name
        try:
            with run_folder.owned(folder, config) if main else nullcontext():
                accelerator.wait_for_everyone()  # until the folder is there, and ours
                if (row := run_folder.stored(folder, config)) is not None:
                    rows.append(row)
                    continue
                with Log(folder, config, accelerator, tracker) as log:
                    for epoch, stored in enumerate(history, 1):
                        if 0 < broken_step <= epoch * steps:
                            before = history[epoch - 2]["train/loss"] if epoch > 1 else None
                            raise diverged(
                                "loss, gradients or weights of",
                                broken_step,
                                stored["lr"],
                                math.nan if before is None else before,
                            )
                        log.write(stored, step=epoch * steps)
                    if main:
                        last = header.at(shared.epochs, shared.epochs * steps, history[-1])
                        checkpoint.save(folder / "last.safetensors", model, last)
                    layers = str(config.model_options)
                    row = final_evaluation(
                        chosen,
                        model,
                        normalise,
                        test,
                        val,
                        accelerator,
                        dataset=dataset.name,
                        folder=folder,
                        log=log,
                        step=shared.epochs * steps,
                        train_seconds=train_seconds,
                        images_per_second=shared.epochs * steps * shared.batch_size / seconds,
                        compiled=False,
                        weights={"source": config.weights, "sha256": None},
                        stacked=len(configs),
                        costs=costs.get(layers),
                        fold_overlap=None if config.fold is None else fold_overlap(dataset),
                    )
            if main:
                costs[layers] = {key: row[key] for key in MEASURED}
            rows.append(row)
        except DivergedError as error:
            rows.append({"model": config.model, "run": folder.name, "error": str(error)})
    return rows


def train_epoch(
    stack: nn.Module,
    optimizers: Sequence[AcceleratedOptimizer],
    schedules: Sequence[LRScheduler],
    batches: Iterable[tuple[Tensor, Tensor]],
    configs: Sequence[RunConfig],
    accelerator: Accelerator,
    broken_at: Tensor,
    *,
    first_step: int,
    advance: Callable[[], None],
) -> list[dict[str, float]]:
    """One pass over the training images; returns what `epoch.epoch_values` does, per member.

    The losses are added up for one backward pass: no gradient of one member depends on another.
    A member whose loss or gradients are not finite takes no step any more, and the number of the
    first such step is put into `broken_at`, int64 (members), where 0 means none.
    """
    started = time.monotonic()
    lrs = [optimizer.param_groups[-1]["lr"] for optimizer in optimizers]
    dtype = torch.float64 if accelerator.device.type != "mps" else None
    sums = torch.zeros(len(configs), 3, dtype=dtype, device=accelerator.device)

    stack.train()
    for step, (images, labels) in enumerate(batches, first_step):  # the steps that were taken
        seed = seed_of(configs[0].seed, DROPOUT, step, accelerator.process_index)
        outputs = stack(images, seed)
        losses = torch.stack(
            [
                F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                for logits, config in zip(outputs, configs, strict=True)
            ]
        )
        accelerator.backward(nan_if_infinite(losses).sum())
        for index, (optimizer, schedule) in enumerate(zip(optimizers, schedules, strict=True)):
            if accelerator.scaler is None:  # which skips such steps by itself
                first = broken_gradients(optimizer) & (broken_at[index] == 0)
                broken_at[index] += first * (step + 1)
                if can_skip(optimizer):
                    optimizer.optimizer.found_inf = (broken_at[index] > 0).float()
            if can_skip(optimizer) or not broken_at[index]:
                optimizer.step()
            schedule.step()
            optimizer.zero_grad()

        sums[:, 0] += losses.detach() * len(labels)
        for index, logits in enumerate(outputs):
            sums[index, 1] += (logits.detach().argmax(1) == labels).sum()
        sums[:, 2] += len(labels)
        advance()

    seconds = time.monotonic() - started
    return [
        {
            "train/loss": loss_sum / count,
            "train/accuracy": hits / count,
            "lr": lr,
            "seconds": seconds,
            "images_per_second": count / seconds,
        }
        for (loss_sum, hits, count), lr in zip(accelerator.reduce(sums).tolist(), lrs, strict=True)
    ]
