"""Features from the centroids of image patches, learned without labels, under a linear head."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from stl10bench.core.errors import UsageError
from stl10bench.models.classifier import Classifier
from stl10bench.models.mlp import Head
from stl10bench.models.registry import register

PATCHES = 200_000  # that the centroids are learned from, at most
ITERATIONS = 10
CONTRAST = 0.0023  # added to a patch's variance: Coates's 10 grey levels squared, normalised
ZCA = 0.1  # added to the eigenvalues of the patches' covariance
_TABLE = {"cpu": 1 << 20, "cuda": 1 << 26}  # distances at once; a CPU's stay in its cache


class KMeansFeatures(nn.Module):
    """Float images (N, 3, S, S) -> features (N, 4 K): how near each quadrant is to each centroid.

    Coates, Lee and Ng (2011), "An analysis of single-layer networks in unsupervised feature
    learning": patches are normalised for contrast (section 3.2.1) and whitened by ZCA; K-means
    gives the centroids; a patch at the distances z_k from them has the K values
    max(0, mean(z) - z_k) ("triangle", section 3.2.2), which are summed over each quadrant (section
    3.3). Departures: images are normalised per channel first; K-means takes 10 steps on at most
    200,000 patches, and an empty cluster begins again at a patch; the classifier is multinomial
    logistic regression, not an SVM, on features to the power 0.5 (`--method probe`).

    The cost: a table of (S - patch + 1)^2 K distances for each image and stride 1.
    """

    standardize = True  # a linear classifier is fitted to features of mean 0 and deviation 1

    def __init__(self, centroids: int, patch: int, stride: int) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride
        size = 3 * patch * patch
        self.mean: Tensor
        self.whitening: Tensor
        self.centroids: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size))
        # Random until they are learned: a model that is only described has outputs as well.
        self.register_buffer("centroids", torch.randn(centroids, size))

    def fit(self, images: Any, *, seed: int) -> None:
        """Learn whitening and centroids from patches of `images`, see `register`."""
        draw = torch.Generator().manual_seed(seed)
        patches = self._sample(images, draw)
        mean = patches.mean(0)
        centred = patches - mean
        covariance = (centred.T @ centred / len(centred)).double().cpu()
        values, vectors = torch.linalg.eigh(covariance)
        whitening = (vectors / (values + ZCA).sqrt() @ vectors.T).to(patches)
        self.mean.copy_(mean)
        self.whitening.copy_(whitening)
        self.centroids.copy_(k_means(centred @ whitening, len(self.centroids), draw))

    def _sample(self, images: Any, draw: torch.Generator) -> Tensor:
        """Normalised patches (P, 3 patch^2) of all images, as many of each, at any place."""
        each, parts = max(1, PATCHES // images.count), []
        for batch in images:
            windows = batch.unfold(2, self.patch, 1).unfold(3, self.patch, 1)  # no copy
            places = windows.shape[2] * windows.shape[3]
            drawn = torch.randint(places, (len(batch), each), generator=draw).to(batch.device)
            rows, columns = drawn // windows.shape[3], drawn % windows.shape[3]
            of_image = torch.arange(len(batch), device=batch.device)[:, None]
            parts.append(windows[of_image, :, rows, columns].flatten(0, 1).flatten(1))
        patches = normalise_contrast(torch.cat(parts).float())
        return patches[torch.randperm(len(patches), generator=draw)[:PATCHES].to(patches.device)]

    def forward(self, images: Tensor) -> Tensor:
        """float32 features (N, 4 K) of images (N, 3, S, S), whatever the precision around it."""
        with torch.autocast(images.device.type, enabled=False):
            if torch.compiler.is_exporting():  # of any number of images
                return self._encode(images)
            side = (images.shape[-1] - self.patch) // self.stride + 1
            limit = _TABLE.get(images.device.type, _TABLE["cpu"])
            part = max(1, limit // (side * side * len(self.centroids)))
            return torch.cat([self._encode(few) for few in torch.split(images, part)])

    def _encode(self, images: Tensor) -> Tensor:
        mean, whitening, centroids = (
            each.float() for each in (self.mean, self.whitening, self.centroids)
        )
        columns = nn.functional.unfold(images.float(), self.patch, stride=self.stride)
        side = (images.shape[-1] - self.patch) // self.stride + 1
        patches = normalise_contrast(columns.transpose(1, 2).flatten(0, 1))
        activations = triangle((patches - mean) @ whitening, centroids)
        pooled = quadrants(side, images.device) @ activations.view(-1, side * side, len(centroids))
        return pooled.flatten(1)


def normalise_contrast(patches: Tensor) -> Tensor:
    """Patches (P, D), each less its mean and divided by its deviation, CONTRAST added."""
    centred = patches - patches.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + CONTRAST).sqrt()


def triangle(patches: Tensor, centroids: Tensor) -> Tensor:
    """How much nearer than the mean each patch (P, D) is to each centroid (K, D): float (P, K)."""
    squares = centroids.square().sum(1)
    table = torch.addmm(squares, patches, centroids.T, alpha=-2)
    table = table.add_(patches.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
    mean = table.mean(1, keepdim=True)
    return table.neg_().add_(mean).relu_()


def quadrants(side: int, device: torch.device) -> Tensor:
    """float32 (4, side^2): 1 where a place of a square of `side` lies in a quadrant, else 0."""
    lower = (torch.arange(side, device=device) >= side // 2).long()
    quadrant = (2 * lower[:, None] + lower).flatten()
    return nn.functional.one_hot(quadrant, 4).T.float()


def k_means(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """`count` centroids (K, D) of points (P, D), by Lloyd's algorithm from random points.

    ITERATIONS steps, in parts; a centroid without points moves to a random one.
    """

    def some(number: int) -> Tensor:
        return points[torch.randint(len(points), (number,), generator=draw).to(points.device)]

    centroids = some(count)
    for _ in range(ITERATIONS):
        squares = centroids.square().sum(1)
        sums, sizes = torch.zeros_like(centroids), points.new_zeros(count)
        for part in torch.split(points, 5000):
            nearest = torch.addmm(squares, part, centroids.T, alpha=-2).argmin(1)
            sums.index_add_(0, nearest, part)
            sizes.index_add_(0, nearest, part.new_ones(len(part)))
        empty = sizes == 0
        centroids = sums / sizes.clamp(min=1)[:, None]
        centroids[empty] = some(int(empty.sum()))
    return centroids


@register
def kmeans(
    num_classes: int,
    image_size: int,
    *,
    centroids: Annotated[int, Field(ge=2)] = 400,
    patch: Annotated[int, Field(ge=2)] = 6,
    stride: Annotated[int, Field(ge=1)] = 1,
) -> nn.Module:
    """A linear classifier of K-means features (Coates, Lee and Ng 2011), by --method probe.

    Raises UsageError for images without at least 2 by 2 patches.
    """
    if image_size < patch + stride:
        raise UsageError(
            f"image_size = {image_size}: kmeans with patches of {patch} px, {stride} apart, needs "
            f"at least {patch + stride} px; raise --image-size"
        )
    head = Head(4 * centroids, num_classes, hidden=(), dropout=0)
    return Classifier(KMeansFeatures(centroids, patch, stride), head, freeze=True)
