"""A batch -> the loss of a run's method, and how many images were right."""

from collections.abc import Callable
from types import MappingProxyType

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from stl10bench.config import SELF_SUPERVISED
from stl10bench.models.methods import (
    FIXMATCH,
    SUPERVISED,
    FixmatchOptions,
    SimclrOptions,
    method_options,
)
from stl10bench.training.setup import Training


def supervised(run: Training, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss of a batch, scalar, and its hits, scalar.

    The targets are classes (B,), or of mixed images their shares (B, C): then the largest counts.
    """
    logits = run.learner(images)
    return mean_loss(run, logits, targets), count_hits(logits, targets)


def count_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """How many of the logits (B, C) are largest at their target, int64 ()."""
    classes = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.detach().argmax(1) == classes).sum()


def mean_loss(run: Training, logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy, scalar; with class weights each image's is times its class's.

    Over the images, not over their weights: so the parts of a batch, and the batches of an epoch,
    add up whatever classes are in them. The weights' mean over the training images is 1. A mixed
    image counts as one of each class, by its shares.
    """
    smoothing, weights = run.config.label_smoothing, run.class_weights
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    weights = weights.to(logits)
    total = F.cross_entropy(logits, targets, weights, reduction="sum")
    if smoothing:
        # torch's own label_smoothing gives each class's part of a smoothed target that class's
        # weight: with 100 images to 1, a common image would be told to be of the rare class.
        of_images = weights[targets] if targets.ndim == 1 else (targets * weights).sum(1)
        uniform = (of_images * -F.log_softmax(logits, 1).mean(1)).sum()
        total = (1 - smoothing) * total + smoothing * uniform
    return total / len(logits)


def fixmatch(
    run: Training, images: Tensor, targets: Tensor, weak: Tensor, strong: Tensor
) -> tuple[Tensor, Tensor]:
    """The supervised loss and, times a ratio, `consistency`; the hits are those with labels.

    Sohn et al. (2020), "FixMatch: simplifying semi-supervised learning with consistency and
    confidence", arXiv:2001.07685, with the names and defaults of USB (Wang et al. 2022). `weak`
    and `strong` are views (B, R, 3, S, S) of the same unlabelled images, R = `uratio` to each
    labelled one. As in the paper the model itself predicts, labels are not smoothed, and the
    average of the weights (`ema`, 0.999) is what is tested.

    Departures: the weak view is a random resized crop of three quarters or more, mirrored or not,
    instead of a padded crop; the strong one is not RandAugment's two or three operations of
    fourteen but all that there is at once (jitter, grey, a closer crop, rotation, Cutout), each as
    strong as drawn; the weak views pass the model alone and without gradients, so in batch norms
    they are not mixed with the others (USB's `use_cat=False`); the optimizer and its schedule are
    the recipe's, whose epochs are passes over the labelled images.

    The cost: of a step, 1 + 4R/3 times that without unlabelled images.
    """
    options: FixmatchOptions = method_options(run.config)
    with torch.no_grad():
        predicted = run.learner(weak.flatten(0, 1))
    logits = run.learner(torch.cat([images, strong.flatten(0, 1)]))
    labelled, unlabelled = logits[: len(images)], logits[len(images) :]
    extra = consistency(predicted, unlabelled, options.p_cutoff)
    loss = mean_loss(run, labelled, targets) + options.ulb_loss_ratio * extra
    return loss, count_hits(labelled, targets)


def consistency(weak: Tensor, strong: Tensor, threshold: float) -> Tensor:
    """The mean cross-entropy of logits (N, C) of strong views to what those of weak ones predict.

    An image whose prediction is less confident than `threshold` counts as 0. No gradients flow to
    the weak views.
    """
    confidence, labels = weak.detach().softmax(1).max(1)
    losses = F.cross_entropy(strong, labels, reduction="none")
    return (losses * (confidence >= threshold)).mean()


def simclr(run: Training, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`nt_xent` of two views (B, 3, S, S) of the same images; the hits are pairs that find theirs.

    With several processes each has the projections of all: the negatives are those of the whole
    batch, whatever its number, and so are loss and gradients, but for batch norms, whose statistics
    are each process's own.
    """
    accelerator = run.accelerator
    options: SimclrOptions = method_options(run.config)
    own = F.normalize(run.learner(torch.cat([first, second])).float(), dim=1)
    views = torch.stack(own.chunk(2), dim=1)  # (B, 2, P): gathered in the order of the images
    loss, hits = nt_xent(_gathered(views, accelerator), options.temperature)
    count = accelerator.num_processes
    # Processes average their gradients, but this one has only its own projections': so, times
    # their number, with the same value.
    loss = loss + (count - 1) * (loss - loss.detach())
    share = len(first) * accelerator.process_index
    return loss, hits[share : share + len(first)].sum()


def _gathered(views: Tensor, accelerator: Accelerator) -> Tensor:
    """The projections of all processes, this one's with their gradients."""
    if accelerator.num_processes == 1:
        return views
    parts = list(accelerator.gather(views.detach()).split(len(views)))
    parts[accelerator.process_index] = views
    return torch.cat(parts)


def nt_xent(views: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of projections (B, 2, P), rows of length 1, and bool (B,): who found its pair.

    Chen et al. (2020), equation 1, "normalised temperature-scaled cross-entropy": each of the 2B
    views is to be told to be of its pair, among all others, by the cosine similarities; the mean
    over them. The hits are of the first views.
    """
    count = len(views)
    flat = views.transpose(0, 1).flatten(0, 1)  # the first views, then the second ones
    similarity = flat @ flat.T / temperature
    similarity = similarity.masked_fill(
        torch.eye(2 * count, dtype=torch.bool, device=flat.device), -torch.inf
    )
    pair = torch.arange(2 * count, device=flat.device).roll(count)
    return F.cross_entropy(similarity, pair), similarity[:count].argmax(1) == pair[:count]


Loss = Callable[..., tuple[Tensor, Tensor]]  # of a run and the tensors of a batch
LOSSES: MappingProxyType[str, Loss] = MappingProxyType(
    {SUPERVISED: supervised, FIXMATCH: fixmatch, SELF_SUPERVISED: simclr}
)
