"""Features of images -> two dimensions, by PCA and t-SNE, as a figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from stl10bench.core.errors import UsageError
from stl10bench.plots import style
from stl10bench.plots.style import Wording

MIN_IMAGES = 8
_COMPONENTS = 50  # principal components that t-SNE starts from
_PERPLEXITY = 30.0
_MARKERS = "osD^vP<>Xph"  # a prime number of them: 110 classes look different
_LEGEND_LINES = 25
_CAPTION = "Of t-SNE only the distances between neighbours mean something."


def project(features: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Features (N, F) -> a title and coordinates (N, 2) for each of PCA and t-SNE.

    PCA's title says the share of the variance that its two components have. t-SNE (van der Maaten
    and Hinton 2008, "Visualizing data using t-SNE") starts from the first 50 components, as there,
    at perplexity 30, less for fewer than 91 images. Raises UsageError for fewer than 8 images and
    for features that are all the same or not finite.
    """
    count, width = features.shape
    if count < MIN_IMAGES:
        raise UsageError(f"{count} images: an embedding needs at least {MIN_IMAGES}")
    if not np.isfinite(features).all() or not np.ptp(features, axis=0).any():
        raise UsageError("the model's features are not finite, or the same for every image")
    with threadpool_limits(1):  # so that the same features give the same figure
        pca = PCA(min(_COMPONENTS, count, width), svd_solver="full")
        components = pca.fit_transform(features.astype(np.float64))
        if components.shape[1] < 2:
            components = np.pad(components, ((0, 0), (0, 1)))
        share = pca.explained_variance_ratio_[:2].sum()
        perplexity = min(_PERPLEXITY, (count - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
        neighbours = tsne.fit_transform(components)
    return {
        f"PCA ({share:.2f} of the variance)": components[:, :2],
        f"t-SNE (perplexity {perplexity:.0f})": neighbours.astype(np.float64),
    }


@style.figure_style()
def scatter(
    title: str,
    projections: Mapping[str, NDArray[np.float64]],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    wording: Wording = style.AS_IT_IS,
) -> Figure:
    """A panel for each projection; a class has a colour and a shape, told apart by either."""
    legend_columns = math.ceil(len(class_names) / _LEGEND_LINES)
    figure = Figure(figsize=(4.4 * len(projections) + 1.9 * legend_columns, 4.6))
    panels = figure.subplots(1, len(projections), squeeze=False)[0]
    for panel, (name, points) in zip(panels, projections.items(), strict=True):
        for label in range(len(class_names)):
            marker = _MARKERS[label % len(_MARKERS)]
            look = {"color": [style.COLOURS[label % len(style.COLOURS)]], "edgecolors": "black"}
            panel.scatter(*points[labels == label].T, s=20, marker=marker, linewidths=0.3, **look)
        panel.set_title(name)
        # Only distances mean something.
        panel.set(xticks=[], yticks=[], xlabel="first coordinate", ylabel="second coordinate")
        panel.spines[["top", "right"]].set_visible(True)
    options: Any = {"ncols": legend_columns, "title": "class"}
    style.legend(figure, panels[0].collections, class_names, "center right", width=1.5, **options)
    style.frame(figure, title, _CAPTION, wording)
    return figure
