"""One run of pretraining, top to bottom: images without labels -> a backbone for --weights."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from stl10bench.core import files
from stl10bench.core.errors import InterruptedRunError
from stl10bench.data.stl10 import Dataset
from stl10bench.metrics.classification import none_if_not_finite
from stl10bench.metrics.significance import wilson_interval
from stl10bench.models import checkpoint
from stl10bench.models.checkpoint import Header
from stl10bench.models.feature_heads import KnnHead, power_normalise
from stl10bench.models.methods import KnnOptions, method_options
from stl10bench.models.pretrained import Weights
from stl10bench.models.projection import headless
from stl10bench.results.pretraining import Pretraining
from stl10bench.training.epoch import epoch_line, epoch_values, loss_before, train_epoch
from stl10bench.training.evaluate import score
from stl10bench.training.interrupt import Watch, defer_signals
from stl10bench.training.job import Job
from stl10bench.training.resume import Position
from stl10bench.training.row import provenance
from stl10bench.training.setup import Training, set_up
from stl10bench.training.tracking import CURVE_POINTS, Log, Mirror
from stl10bench.training.trainer import logits_of, save

KNN = "knn/accuracy"


def pretrain(
    job: Job,
    accelerator: Accelerator,
    dataset: Dataset,
    weights: Weights,
    console: Console,
    mirrors: Sequence[Mirror] = (),
) -> Pretraining:
    """Pretrain a backbone on images without labels; it stands in the run folder then.

    SimCLR: Chen, Kornblith, Norouzi and Hinton (2020), "A simple framework for contrastive learning
    of visual representations", arXiv:2002.05709: two random views of each image (resized crop,
    mirror, jitter, grey, blur), a projection head of two layers, and `losses.nt_xent`.
    Departures: AdamW and batches of hundreds instead of LARS and thousands; crops of a fifth of the
    area or more, as MoCo v2 has them, instead of 8 %; jitter, of strength 0.5 as for CIFAR-10, is
    of every image instead of four of five, and before the crop; no batch norm in the head; batch
    norms of several processes are not synchronised. The cost: two forward and backward passes an
    image and epoch.

    Labels choose which training images validate (those are left out) and give the kNN lines, which
    choose nothing; they never reach the weights. The last epoch counts. An interrupted run resumes
    from its newest checkpoint, with the same bits on a CPU. `train/accuracy` is the share of views
    whose nearest is their pair. Raises what `set_up` raises, DivergedError, and
    InterruptedRunError.
    """
    run, header, state = set_up(job, accelerator, dataset, weights, console)
    config, steps = run.config, run.steps_per_epoch
    at = Position()
    if state is not None:
        at, header = state.position, state.header
    signalled = defer_signals()
    with (
        Log(run.folder, accelerator, mirrors, state and state.mark, console) as log,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        watch = Watch(accelerator, signalled, job.limits)
        task = bar.add_task(config.name, total=config.epochs * steps, completed=at.step(steps))
        every = math.ceil(config.epochs * steps / CURVE_POINTS)
        knn_every = method_options(config).knn_every

        def advance(step: int, loss: Tensor, lr: float) -> None:
            bar.advance(task)
            if step % every == 0:
                log.write_step(loss, lr, step=step)

        try:
            if state is None:
                before_training = neighbours(run, watch)
                console.print(first_line(run, before_training), highlight=False, soft_wrap=True)
                if before_training:
                    log.write(before_training, step=0)
            while at.epoch < config.epochs:
                at = train_epoch(run, at, loss_before(at, header), watch.pauses, advance)
                if at.batch < steps:  # paused: to stop, or because a checkpoint is due
                    watch.raise_if_stopped()
                    save(run, at, header, None, log)
                    watch.saved()
                    continue
                epoch, step, values = at.epoch + 1, at.step(steps), epoch_values(at)
                if epoch % knn_every == 0 or epoch == config.epochs:
                    values |= neighbours(run, watch)
                logged = none_if_not_finite({"epoch": epoch, **values, "time": time.time()})
                log.write(logged, step=step)
                line = line_of(epoch, config.epochs, values)
                console.print(line, highlight=False, soft_wrap=True)
                header = header.at(epoch, step, logged)
                at = at.next_epoch()
                if job.limits.checkpoint_epochs and epoch % job.limits.checkpoint_epochs == 0:
                    save(run, at, header, None, log)
                    watch.saved()
        except InterruptedRunError:
            save(run, at, header, None, log)
            watch.saved()
            raise
        return write_backbone(run, at, header)


def neighbours(run: Training, watch: Watch) -> dict[str, float]:
    """`knn/accuracy` of the features of the validation images; nothing where there are none.

    The vote of the nearest training images, as `--method knn` has it (`KnnHead`). They are compared
    where they have labels: the weights do not know of it.
    """
    if not len(run.validation.labels):
        return {}
    options = KnnOptions()
    with headless(run.model):
        bank, queries = (
            logits_of(run, images.images, watch.check) for images in (run.train, run.validation)
        )
    classes = len(run.dataset.class_names)
    labels = run.train.labels.cpu()
    head = KnnHead(power_normalise(bank, 1), labels, classes, options.k, options.temperature)
    votes = torch.cat([head(part) for part in torch.split(queries, 1000)])
    return {KNN: score(votes, run.validation.labels, "knn")[KNN]}


def first_line(run: Training, values: dict[str, float]) -> str:
    """What the kNN lines are, and the first of them, of random weights."""
    if KNN not in values:
        return "no kNN lines: there are no validation images"
    start = "the initial weights" if run.weights.file else "random weights"
    return (
        f"kNN on {len(run.validation.labels):,} validation images is a log line and chooses "
        f"nothing: {values[KNN]:.1%} with {start}"
    )


def line_of(epoch: int, epochs: int, values: dict[str, float]) -> str:
    """What one epoch prints."""
    knn = f"  kNN {values[KNN]:.1%}" if KNN in values else ""
    return epoch_line(epoch, epochs, values) + knn


def write_backbone(run: Training, at: Position, header: Header) -> Pretraining:
    """Write backbone.safetensors, and then what it cost, without which the run is not finished."""
    config, accuracy, unlabelled = run.config, header.metrics.get(KNN), run.unlabelled
    assert unlabelled is not None  # or it would not have been set up
    digest = ""
    if run.is_main:
        checkpoint.save(run.folder.backbone_file, run.model, header, headless=True)
        digest = files.digests(run.folder.backbone_file, "sha256")[0]
    images = config.epochs * run.steps_per_epoch * config.batch_size
    facts: dict[str, Any] = {"knn_accuracy": accuracy}
    if accuracy is not None:
        facts["knn_interval"] = wilson_interval(accuracy, len(run.validation.labels))
    pretraining = Pretraining(
        run=run.folder.name,
        config=config,
        dataset=run.dataset.name,
        unlabeled_used=len(unlabelled),
        copies_dropped=unlabelled.dropped,
        seconds=run.seconds(),
        images_per_second=images / at.trained_seconds,
        sha256=digest,
        machine=provenance(run.accelerator.device),
        **facts,
    )
    if run.is_main:
        content = pretraining.model_dump(mode="json")
        files.write_json(run.folder.pretraining_file, content)
    return pretraining
