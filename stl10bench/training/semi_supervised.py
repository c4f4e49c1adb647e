"""Frozen features, few labels and unlabelled images -> a classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stl10bench.models.feature_heads import SpreadHead, power_normalise
from stl10bench.models.methods import LabelSpreadingOptions, PseudoLabelOptions, method_options
from stl10bench.training.features import Known, Labelled
from stl10bench.training.linear import fit_classifier, how_of, set_head
from stl10bench.training.setup import Run

_ROWS = 1000  # of the table of similarities, at once
_STEPS, _TOLERANCE = 1000, 1e-6  # of the spreading


def pseudo_label(run: Run, known: Known, check: Callable[[], None]) -> dict[str, Any]:
    """A linear classifier that learns from its own predictions; without unlabelled images a probe.

    Lee (2013), "Pseudo-Label", in rounds as Cascante-Bonilla et al. (2021), "Curriculum labeling":
    each round predicts the unlabelled images and fits anew, to the labelled images and of each
    predicted class the most confident ones: in round r of R, r/R of `share`. Departures: frozen
    features and logistic regression instead of a network that is trained; the penalty is chosen
    once, with the labels alone. The cost: R fits.
    """
    options: PseudoLabelOptions = method_options(run.config)
    how = how_of(run)
    fit = fit_classifier(known.labelled, known.validation, how, check)
    chosen = {"penalty": fit.penalty, "penalty_chosen_by": fit.chosen_by}
    how = how._replace(penalty=fit.penalty)
    inputs = power_normalise(known.unlabelled.to(how.device), how.power)
    for number in range(1, options.rounds + 1) if len(known.unlabelled) else ():
        check()
        logits = torch.addmm(fit.weights[-1], inputs, fit.weights[:-1])
        confidence, predicted = (each.cpu() for each in logits.softmax(1).max(1))
        taken = most_confident(confidence, predicted, options.share * number / options.rounds)
        features = torch.cat([known.labelled.features, known.unlabelled[taken]])
        labels = torch.cat([known.labelled.labels, predicted[taken]])
        fit = fit_classifier(Labelled(features, labels), known.validation, how, check)
        chosen["pseudo_labels"] = len(taken)
    set_head(run, fit)
    return chosen


def most_confident(confidence: Tensor, predicted: Tensor, share: float) -> Tensor:
    """Sorted int64 rows: of the images predicted as each class the `share` of most confidence.

    At least one of each class; `confidence` and `predicted` are (N,).
    """
    taken = []
    for label in sorted(set(predicted.tolist())):
        rows = (predicted == label).nonzero().flatten()
        order = confidence[rows].argsort(descending=True, stable=True)
        taken.append(rows[order[: max(1, round(share * len(rows)))]])
    return torch.cat(taken).sort().values


def label_spreading(run: Run, known: Known, check: Callable[[], None]) -> dict[str, Any]:
    """A vote of the nearest images, labelled or not, whose labels were spread over their graph.

    Zhou et al. (2004), "Learning with local and global consistency". Departures: the graph has the
    k nearest neighbours of each image alone, weighted by exp(cosine similarity / temperature); a
    new image takes the vote of its k nearest (Delalleau, Bengio and Le Roux 2005), so test images
    are never in the graph. The cost: N^2 similarities.
    """
    options: LabelSpreadingOptions = method_options(run.config)
    labels, classes = known.labelled.labels, len(run.dataset.class_names)
    features = torch.cat([known.labelled.features, known.unlabelled])
    images = power_normalise(features.to(run.accelerator.device), 1)
    graph = neighbour_graph(images, options.k, options.temperature, check)
    seeds = torch.zeros(len(images), classes, device=images.device)
    seeds[torch.arange(len(labels)), labels.to(images.device)] = 1
    shares = spread(graph, seeds, options.alpha)
    head = SpreadHead(images.cpu(), shares.cpu(), options.k, options.temperature)
    run.model.set_submodule("head", head)
    return {}


class Graph(NamedTuple):
    """Directed edges, each in both directions, twice where each image is the other's neighbour."""

    here: Tensor  # int64 (E,): an image
    there: Tensor  # int64 (E,): another
    weights: Tensor  # float32 (E,)


def neighbour_graph(
    images: Tensor, k: int, temperature: float, check: Callable[[], None] = lambda: None
) -> Graph:
    """The edges between images (N, F), rows of length 1, and their `k` nearest neighbours.

    At the cosine similarity s an edge weighs exp((s - 1) / temperature).
    """
    count = min(k, len(images) - 1)
    columns, weights = [], []
    for first, part in zip(range(0, len(images), _ROWS), torch.split(images, _ROWS), strict=True):
        check()
        similarity = part @ images.T
        own = torch.arange(len(part), device=images.device)
        similarity[own, first + own] = -torch.inf
        nearest, rows = similarity.topk(count, dim=1)
        columns.append(rows)
        weights.append(((nearest - 1) / temperature).exp())
    here = torch.arange(len(images), device=images.device).repeat_interleave(count)
    there, values = torch.cat(columns).flatten(), torch.cat(weights).flatten()
    return Graph(torch.cat([here, there]), torch.cat([there, here]), values.repeat(2))


def spread(graph: Graph, seeds: Tensor, alpha: float) -> Tensor:
    """What of each class reaches each image (N, C), as shares, from the labels `seeds` (N, C).

    The limit of F <- alpha S F + (1 - alpha) Y, where S are the weights divided by the roots of
    both images' degrees. What no label reaches has equal shares.
    """
    here, there, weights = graph
    degrees = torch.zeros(len(seeds), device=seeds.device).index_add_(0, here, weights)
    roots = degrees.sqrt().clamp(min=torch.finfo(degrees.dtype).tiny)  # 0: without near neighbours
    weights = (weights / roots[here] / roots[there])[:, None]
    reached = seeds
    for _ in range(_STEPS):
        before, neighbours = reached, torch.zeros_like(seeds)
        neighbours.index_add_(0, here, weights * reached[there])
        reached = alpha * neighbours + (1 - alpha) * seeds
        if (reached - before).abs().max() < _TOLERANCE:
            break
    total = reached.sum(1, keepdim=True)
    return torch.where(total > 0, reached / total, 1 / seeds.shape[1])
