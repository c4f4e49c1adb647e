"""Features and labels -> a linear classifier, its penalty chosen on images kept apart."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn import functional as F

from stl10bench.core.seeding import CROSS_VALIDATION, numpy_generator
from stl10bench.data.splits import stratified_parts
from stl10bench.models.feature_heads import ProbeHead, power_normalise
from stl10bench.models.methods import FEW_LABELS, method_options
from stl10bench.training.features import Labelled
from stl10bench.training.setup import Run

PENALTIES = tuple(2.0**power for power in range(6, -11, -1))  # scikit-learn's 1/C, strong to weak
DEFAULT_PENALTY = 1.0
FOLDS = 5  # of the cross-validation where there are no validation images


class How(NamedTuple):
    """How a linear classifier is fitted."""

    power: float  # see `power_normalise`
    standardize: bool  # features to mean 0 and deviation 1 of the images that it is fitted to
    penalty: float | None  # None: chosen
    classes: int
    seed: int
    device: torch.device


def how_of(run: Run) -> How:
    """How a run's method fits a linear classifier."""
    options = method_options(run.config)
    return How(
        power=options.power,
        standardize=getattr(run.model.get_submodule("backbone"), "standardize", False),
        penalty=options.penalty,
        classes=len(run.dataset.class_names),
        seed=run.config.seed,
        device=run.accelerator.device,
    )


class Part(NamedTuple):
    """Images to fit to, and others to judge the fit on; both standardised as the first, if asked.

    Standardised rows are divided by the root of F as well: like the others they have a length of
    about 1, so the same penalties fit.
    """

    inputs: Tensor  # float32 (N, F)
    targets: Tensor  # int64 (N,)
    judged_inputs: Tensor
    judged_targets: Tensor
    mean: Tensor  # float32 (F,)
    scale: Tensor  # float32 (F,)

    def unscaled(self, weights: Tensor) -> Tensor:
        """The weights (F + 1, C) for inputs that are not standardised."""
        slopes = weights[:-1] / self.scale[:, None]
        return torch.cat([slopes, weights[-1:] - self.mean @ slopes])


def make_part(fitted: Labelled, judged: Labelled, how: How) -> Part:
    """What is learned from some images and judged on others."""
    inputs, judged_inputs = (
        power_normalise(each.features.to(how.device), how.power) for each in (fitted, judged)
    )
    mean, scale = torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])
    if how.standardize:
        deviation, mean = torch.std_mean(inputs, 0)
        # A feature that hardly varies would be noise.
        scale = deviation.clamp(min=1e-3 * deviation.mean().item()) * inputs.shape[1] ** 0.5
        inputs, judged_inputs = (inputs - mean) / scale, (judged_inputs - mean) / scale
    targets, judged_targets = (each.labels.to(how.device) for each in (fitted, judged))
    return Part(inputs, targets, judged_inputs, judged_targets, mean, scale)


class Fit(NamedTuple):
    """A linear classifier of `power_normalise`d features."""

    weights: Tensor  # float32 (F + 1, C), the last row the biases
    penalty: float
    chosen_by: str


def fit_classifier(
    labelled: Labelled,
    validation: Labelled,
    how: How,
    check: Callable[[], None],
    *,
    views: int = 1,
) -> Fit:
    """A classifier, its penalty chosen unless it is given.

    It is chosen on the validation images; without any by cross-validation, and with few labels not
    at all. `labelled` holds all images in a first view, then all in a second.
    """
    everything, weights = make_part(labelled, validation, how), None
    penalty, by = how.penalty, "given"
    if penalty is None and len(validation.labels):
        penalty, weights = choose_penalty([everything], how.classes, check)
        by = "validation images"
    elif penalty is None and len(labelled.labels) // views >= FEW_LABELS * how.classes:
        folds = _cross_validation(labelled, how.seed, views)
        parts = [make_part(fitted, judged, how) for fitted, judged in folds]
        penalty, _ = choose_penalty(parts, how.classes, check)
        by = f"{FOLDS}-fold cross-validation"
    elif penalty is None:
        penalty, by = DEFAULT_PENALTY, "default: too few labels to choose it"
    if weights is None:
        start = torch.zeros(everything.inputs.shape[1] + 1, how.classes, device=how.device)
        weights = fit_linear(everything.inputs, everything.targets, penalty, start)
    return Fit(everything.unscaled(weights) if how.standardize else weights, penalty, by)


def set_head(run: Run, fit: Fit) -> None:
    """Give a classifier to the head of a run's model, in all processes the main one's bits."""
    head = run.model.get_submodule("head")
    assert isinstance(head, ProbeHead)
    weights = broadcast(fit.weights)
    with torch.no_grad():
        head.linear.weight.copy_(weights[:-1].T)
        head.linear.bias.copy_(weights[-1])


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


def _cross_validation(
    labelled: Labelled, seed: int, views: int
) -> Iterator[tuple[Labelled, Labelled]]:
    """What to fit to, in all views, and what to judge, in the first, of FOLDS stratified folds."""
    labels = labelled.labels[: len(labelled.labels) // views].numpy()
    fold_of = stratified_parts(labels, FOLDS, numpy_generator(seed, CROSS_VALIDATION))
    for fold in range(FOLDS):
        fits = np.flatnonzero(np.tile(fold_of, views) != fold)
        judged = np.flatnonzero(fold_of == fold)
        yield Labelled(*(t[fits] for t in labelled)), Labelled(*(t[judged] for t in labelled))
