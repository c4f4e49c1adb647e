"""One run on frozen features, with a classifier that is fitted to them -> its row."""

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from stl10bench.data.loader import load_images
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.data.unlabelled import find_unlabelled
from stl10bench.metrics.classification import none_if_not_finite
from stl10bench.models.check import check_logits
from stl10bench.models.checkpoint import Header
from stl10bench.models.classifier import Classifier
from stl10bench.models.feature_heads import KnnHead, power_normalise
from stl10bench.models.methods import NEIGHBOURS, method_options
from stl10bench.models.pretrained import Weights
from stl10bench.results.rows import Row
from stl10bench.training.evaluate import fuse_frozen, score
from stl10bench.training.features import Known, Labelled, read_features, split_features
from stl10bench.training.first_model import InputBatches, create_model, fit_modules
from stl10bench.training.interrupt import Watch, defer_signals
from stl10bench.training.job import Job
from stl10bench.training.linear import fit_classifier, how_of, set_head
from stl10bench.training.row import Effort, write_result
from stl10bench.training.semi_supervised import label_spreading, pseudo_label
from stl10bench.training.setup import Run, load_test_images
from stl10bench.training.tracking import Log, Mirror


def train(
    job: Job,
    accelerator: Accelerator,
    dataset: Dataset,
    weights: Weights,
    console: Console,
    mirrors: Sequence[Mirror] = (),
) -> Row:
    """Fit a classifier to the features of a frozen backbone, test it and return the row.

    The features of whole splits are computed once and kept (`training.features`), so a run that was
    interrupted, and the next run with the same backbone and size, begin where they are there.
    The test images' come last. `train_seconds` is what the backbone learned in (`fit_modules`), the
    share of the forward passes that the run's own images took, when they were made, and the fit.
    Raises UsageError for a model without a frozen backbone, and what `create_model` raises.
    """
    config = job.config
    run, header = _set_up(job, accelerator, dataset, weights, console)
    prepared = run.seconds()
    signalled = defer_signals()
    with (
        Log(run.folder, accelerator, mirrors, console=console) as log,
        console.status("features of the training images") as status,
    ):
        watch = Watch(accelerator, signalled, job.limits)
        known = read_features(run, watch.check)
        status.update("fitting the classifier")
        started = time.monotonic()
        chosen = _METHODS[config.method](run, known, watch.check)
        spent = prepared + known.seconds + time.monotonic() - started

        logits = partial(_logits, run.model.get_submodule("head"), accelerator.device)
        arrays, values = {}, {}
        if config.method not in NEIGHBOURS:  # where each image would be its own neighbour
            values = score(logits(known.labelled.features), known.labelled.labels, "train")
        if len(known.validation.labels):
            predicted = logits(known.validation.features)
            values |= score(predicted, known.validation.labels, "val")
            arrays["val_logits"] = predicted.numpy()
            arrays["val_labels"] = known.validation.labels.numpy()
        speed = known.images / known.seconds
        cost = {"seconds": spent, "images_per_second": speed, "time": time.time()}
        logged = none_if_not_finite({"epoch": 1, **values, **cost})
        log.write(logged, step=1)

        status.update("features of the test images")
        arrays |= _test(run, logits, watch.check)
        images = load_test_images(config, dataset, accelerator, count=250).images
        effort = Effort(1, spent, spent, speed, chosen=chosen)
        return write_result(run, header.at(0, 0, logged), arrays, images, effort, log)


def _set_up(
    job: Job, accelerator: Accelerator, dataset: Dataset, weights: Weights, console: Console
) -> tuple[Run, Header]:
    """The run, its backbone as it stays, and the header of its checkpoint."""
    config = job.config
    rows, _ = training_rows(config, dataset)

    @cache
    def training_images() -> Tensor:
        return load_images(dataset.train, rows, config, accelerator.device).images

    unlabelled = find_unlabelled(config, dataset)
    model, normalise, header = create_model(
        config, dataset, weights, training_images, unlabelled, accelerator
    )
    assert isinstance(model, Classifier)  # or it would not have been built
    model.to(accelerator.device)
    check_logits(config.model, model, len(dataset.class_names), config.image_size)
    run = Run(
        job=job,
        dataset=dataset,
        weights=weights,
        accelerator=accelerator,
        console=console,
        model=model,
        normalise=normalise,
        started=time.monotonic(),
        unlabelled=unlabelled,
    )
    batches = InputBatches(training_images, normalise, config, unlabelled)
    fit_modules(model, batches, fitted=bool(weights.configs))
    few = load_images(dataset.train, rows[:4], config, accelerator.device)
    fuse_frozen(model, few, normalise, config)
    return run, header


@torch.no_grad()
def _logits(head: torch.nn.Module, device: torch.device, features: Tensor) -> Tensor:
    """float32 logits (N, C), on the CPU, of features (N, F)."""
    head.to(device).eval()
    return torch.cat([head(part.to(device)).cpu() for part in torch.split(features, 1000)])


def _test(
    run: Run, logits: Callable[[Tensor], Tensor], check: Callable[[], None]
) -> dict[str, NDArray[Any]]:
    """The arrays of the predictions file that are of the test images, see `write_result`."""
    tested = split_features(run, "test", check=check)
    arrays = {"logits": logits(tested.values).numpy(), "labels": run.dataset.test.labels}
    if run.config.tta == "flip":
        again = split_features(run, "test", mirrored=True, check=check)
        arrays["mirrored_logits"] = logits(again.values).numpy()
    return arrays


# The methods: each gives the run's model its head, and returns what it chose, for the row.


def _neighbours(run: Run, known: Known, _: Callable[[], None]) -> dict[str, Any]:
    options, classes = method_options(run.config), len(run.dataset.class_names)
    bank = power_normalise(known.labelled.features, 1)
    head = KnnHead(bank, known.labelled.labels, classes, options.k, options.temperature)
    run.model.set_submodule("head", head)
    return {}


def _probe(run: Run, known: Known, check: Callable[[], None]) -> dict[str, Any]:
    labelled, views = known.labelled, 1
    if known.mirrored is not None:
        features = torch.cat([labelled.features, known.mirrored])
        labelled, views = Labelled(features, labelled.labels.repeat(2)), 2
    fit = fit_classifier(labelled, known.validation, how_of(run), check, views=views)
    set_head(run, fit)
    return {"penalty": fit.penalty, "penalty_chosen_by": fit.chosen_by}


_METHODS = {
    "probe": _probe,
    "knn": _neighbours,
    "pseudo-label": pseudo_label,
    "label-spreading": label_spreading,
}
