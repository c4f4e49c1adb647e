"""One run on frozen features, with a linear classifier or nearest neighbours -> its row."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from stl10bench.core.seeding import CROSS_VALIDATION, numpy_generator
from stl10bench.data.loader import load_images
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.metrics.classification import none_if_not_finite
from stl10bench.models.check import check_logits
from stl10bench.models.classifier import Classifier
from stl10bench.models.feature_heads import KnnHead, ProbeHead, power_normalise
from stl10bench.models.methods import FEW_LABELS, ProbeOptions, method_options
from stl10bench.models.pretrained import Weights
from stl10bench.results.rows import Row
from stl10bench.training.evaluate import fuse_frozen, score
from stl10bench.training.features import split_features
from stl10bench.training.first_model import InputBatches, create_model, fit_modules
from stl10bench.training.interrupt import Watch, deferred_signals
from stl10bench.training.job import Job
from stl10bench.training.row import Effort, write_result
from stl10bench.training.setup import Run, load_test_images
from stl10bench.training.tracking import Log, Mirror

PENALTIES = tuple(2.0**power for power in range(6, -11, -1))  # scikit-learn's 1/C, strong to weak
DEFAULT_PENALTY = 1.0
FOLDS = 5  # of the cross-validation where there are no validation images


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
    The test images' come last. `train_seconds` is the share of the forward passes over the training
    split that the run's own images took, when they were made, and the fit. Raises UsageError for a
    model without a frozen backbone, and what `create_model` raises.
    """
    config = job.config
    train_rows, val_rows = training_rows(config, dataset)
    used = np.concatenate([train_rows, val_rows])

    @cache
    def training_images() -> Tensor:
        return load_images(dataset.train, train_rows, config, accelerator.device).images

    model, normalise, header = create_model(config, dataset, weights, training_images, accelerator)
    assert isinstance(model, Classifier)  # or it would not have been built
    model.to(accelerator.device)
    check_logits(config.model, model, len(dataset.class_names), config.image_size)
    started = time.monotonic()
    fit_modules(model, InputBatches(training_images, normalise, config))
    prepared = time.monotonic() - started
    few = load_images(dataset.train, train_rows[:4], config, accelerator.device)
    fuse_frozen(model, few, normalise, config)
    run = Run(
        job=job,
        dataset=dataset,
        weights=weights,
        accelerator=accelerator,
        console=console,
        model=model,
        normalise=normalise,
        started=started,
    )
    with (
        deferred_signals() as signalled,
        Log(run.folder, accelerator, mirrors) as log,
        console.status("features of the training images") as status,
    ):
        watch = Watch(accelerator, signalled, job.limits)
        features = split_features(run, "train", check=watch.check)
        seconds = features.seconds
        labelled = Labelled(features.values[train_rows], _labels(dataset, train_rows))
        validation = Labelled(features.values[val_rows], _labels(dataset, val_rows))
        started = time.monotonic()
        chosen: dict[str, Any] = {}
        if config.method == "knn":
            model.head = _neighbours(run, labelled)
        else:
            mirrored = None
            if method_options(config).views == 2:
                again = split_features(run, "train", mirrored=True, check=watch.check)
                seconds, mirrored = seconds + again.seconds, again.values[train_rows]
                started = time.monotonic()
            status.update("fitting the classifier")
            chosen = _fit_probe(run, labelled, validation, mirrored, watch.check)
        fitted = time.monotonic() - started
        seconds *= len(used) / len(features.values)
        spent = prepared + seconds + fitted

        logits = partial(_logits, model.head, accelerator.device)
        values = {}
        if config.method != "knn":  # where each training image would be its own neighbour
            values = score(logits(labelled.features), labelled.labels, "train")
        if len(val_rows):
            values |= score(logits(validation.features), validation.labels, "val")
        speed = {"seconds": spent, "images_per_second": len(used) / seconds}
        logged = none_if_not_finite({"epoch": 1, **values, **speed, "time": time.time()})
        log.write(logged, step=1)
        header = header.at(0, 0, logged)

        status.update("features of the test images")
        tested = split_features(run, "test", check=watch.check)
        arrays = {"logits": logits(tested.values).numpy(), "labels": dataset.test.labels}
        if config.tta == "flip":
            again = split_features(run, "test", mirrored=True, check=watch.check)
            arrays["mirrored_logits"] = logits(again.values).numpy()
        if len(val_rows):
            arrays["val_logits"] = logits(validation.features).numpy()
            arrays["val_labels"] = validation.labels.numpy()
        images = load_test_images(config, dataset, accelerator, count=250).images
        effort = Effort(1, spent, spent, len(used) / seconds, chosen=chosen)
        return write_result(run, header, arrays, images, effort, log)


class Labelled(NamedTuple):
    """Features float32 (N, F) and labels int64 (N,), on the CPU."""

    features: Tensor
    labels: Tensor


def _labels(dataset: Dataset, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
    return torch.from_numpy(dataset.train.labels[rows])


@torch.no_grad()
def _logits(head: torch.nn.Module, device: torch.device, features: Tensor) -> Tensor:
    """float32 logits (N, C), on the CPU, of features (N, F)."""
    head.to(device).eval()
    return torch.cat([head(part.to(device)).cpu() for part in torch.split(features, 1000)])


def _neighbours(run: Run, labelled: Labelled) -> KnnHead:
    options, classes = method_options(run.config), len(run.dataset.class_names)
    bank = power_normalise(labelled.features, 1)
    return KnnHead(bank, labelled.labels, classes, options.k, options.temperature)


def _fit_probe(
    run: Run,
    labelled: Labelled,
    validation: Labelled,
    mirrored: Tensor | None,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Fit the head of the run's model; returns its penalty and what that was chosen on."""
    options: ProbeOptions = method_options(run.config)
    head, device = run.model.get_submodule("head"), run.accelerator.device
    assert isinstance(head, ProbeHead)
    classes = len(run.dataset.class_names)

    def part(rows: Tensor, judged: Labelled) -> "Part":
        """What is learned from the images `rows`, in all their views, and judged on others."""
        views = [labelled.features[rows], *([] if mirrored is None else [mirrored[rows]])]
        inputs = power_normalise(torch.cat(views), options.power)
        targets = labelled.labels[rows].repeat(len(views))
        judged_inputs = power_normalise(judged.features, options.power)
        return Part(*(t.to(device) for t in (inputs, targets, judged_inputs, judged.labels)))

    everything, weights = part(torch.arange(len(labelled.labels)), validation), None
    penalty, by = options.penalty, "given"
    if penalty is None and len(validation.labels):
        penalty, weights = choose_penalty([everything], classes, check)
        by = "validation images"
    elif penalty is None and len(labelled.labels) >= FEW_LABELS * classes:
        folds = list(_cross_validation(labelled, run.config.seed))
        parts = [part(rows, Labelled(*(t[left] for t in labelled))) for rows, left in folds]
        penalty, _ = choose_penalty(parts, classes, check)
        by = f"{FOLDS}-fold cross-validation"
    elif penalty is None:
        penalty, by = DEFAULT_PENALTY, "default: too few labels to choose it"
    if weights is None:
        start = torch.zeros(everything.inputs.shape[1] + 1, classes, device=device)
        weights = fit_linear(everything.inputs, everything.targets, penalty, start)
    weights = broadcast(weights)  # all processes have the main one's bits
    with torch.no_grad():
        head.linear.weight.copy_(weights[:-1].T)
        head.linear.bias.copy_(weights[-1])
    return {"penalty": penalty, "penalty_chosen_by": by}


class Part(NamedTuple):
    """Normalised features and labels to fit to, and others to judge the fit on."""

    inputs: Tensor  # float32 (N, F)
    targets: Tensor  # int64 (N,)
    judged_inputs: Tensor
    judged_targets: Tensor


def choose_penalty(
    parts: Sequence[Part], classes: int, check: Callable[[], None]
) -> tuple[float, Tensor]:
    """The penalty with the most hits on the judged images of all parts, then the lowest loss.

    Returned with the weights that the first part has with it. PENALTIES are tried from the
    strongest on, each fit beginning at the one before, until the loss has risen twice in a row.
    """
    features, device = parts[0].inputs.shape[1], parts[0].inputs.device
    fits = [torch.zeros(features + 1, classes, device=device) for _ in parts]
    best: tuple[tuple[int, float], float, Tensor] | None = None
    losses: list[float] = []
    for penalty in PENALTIES:
        check()
        fits = [
            fit_linear(part.inputs, part.targets, penalty, start)
            for part, start in zip(parts, fits, strict=True)
        ]
        hits, loss = 0, 0.0
        for part, weights in zip(parts, fits, strict=True):
            logits = torch.addmm(weights[-1], part.judged_inputs, weights[:-1])
            hits += int((logits.argmax(1) == part.judged_targets).sum())
            loss += F.cross_entropy(logits, part.judged_targets, reduction="sum").item()
        if best is None or (hits, -loss) > best[0]:
            best = (hits, -loss), penalty, fits[0]
        losses.append(loss)
        if len(losses) > 2 and losses[-1] > losses[-2] > losses[-3]:
            break
    assert best is not None
    return best[1], best[2]


def fit_linear(inputs: Tensor, targets: Tensor, penalty: float, start: Tensor) -> Tensor:
    """Multinomial logistic regression: float32 weights (F + 1, C), the last row the biases.

    The minimum of the summed cross-entropy over `inputs` (N, F) and `targets` (N,) plus half the
    penalty times the squared weights, biases apart: scikit-learn's LogisticRegression with
    C = 1 / penalty. By L-BFGS (Liu and Nocedal 1989) from `start`, with strong Wolfe steps.
    """
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=300,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.addmm(weights[-1], inputs, weights[:-1]), targets)
        value = value + penalty / (2 * len(targets)) * weights[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _cross_validation(labelled: Labelled, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows to fit and those to judge, of each of FOLDS stratified folds."""
    rng, fold_of = numpy_generator(seed, CROSS_VALIDATION), np.zeros(len(labelled.labels), int)
    for label in np.unique(labelled.labels):
        rows = rng.permutation(np.flatnonzero(labelled.labels.numpy() == label))
        fold_of[rows] = np.arange(len(rows)) % FOLDS
    for fold in range(FOLDS):
        fits, judged = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        yield torch.from_numpy(fits), torch.from_numpy(judged)
