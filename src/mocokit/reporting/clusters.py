"""Groups of images that lie together in feature space, and the most typical images of each."""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mocokit.deploy.nearest import unit

FEWEST, MOST, PER_CLUSTER = 2, 20, 10
EXACT = 20_000  # images up to which k-means looks at all of them at each step
COMPONENTS = 64  # principal components that k-means sees


class Clusters(NamedTuple):
    """``of`` [N] int64 the cluster of each image, 0 the largest; ``typical`` for each cluster its rows, the nearest to
    its centre first."""

    of: np.ndarray
    typical: list[np.ndarray]


def cluster_count(images: int) -> int:
    """The square root of a tenth of the images, 2 at least and 20 at most: a strip each that can be looked at."""
    return min(images, max(FEWEST, min(MOST, round(math.sqrt(images / PER_CLUSTER)))))


def cluster(features: Tensor, k: int | None, seed: int) -> Clusters:
    """k clusters, or `cluster_count`, by k-means on unit ``features`` [N, D], reduced to 64 principal components.

    There are fewer if there are fewer different images.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.decomposition import PCA

    x = unit(features.numpy()).numpy()
    if x.shape[1] > COMPONENTS < len(x):
        x = PCA(COMPONENTS, random_state=0).fit_transform(x)
    different = len(np.unique(x.round(6), axis=0)) if len(x) < EXACT else len(x)
    k = min(k or cluster_count(len(x)), different)
    kind = KMeans if len(x) <= EXACT else MiniBatchKMeans
    model = kind(k, n_init=4, random_state=seed).fit(x)
    distance = np.linalg.norm(x - model.cluster_centers_[model.labels_], axis=1)
    by_size = np.argsort(-np.bincount(model.labels_, minlength=k), kind="stable")
    of = np.empty(k, dtype=np.int64)
    of[by_size] = np.arange(k)
    labels = of[model.labels_]
    order = np.lexsort((distance, labels))
    typical = np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1])
    return Clusters(labels, [rows for rows in typical if len(rows)])


def class_mix(clusters: Clusters, labels: np.ndarray, classes: int) -> list[list[tuple[int, float]]]:
    """For each cluster the classes of its labelled images and their shares, the greatest first; ``labels`` [N] int64,
    -1 for none."""
    mixes = []
    for rows in clusters.typical:
        known = labels[rows][labels[rows] >= 0]
        counts = np.bincount(known, minlength=classes)
        order = np.argsort(-counts, kind="stable")
        mixes.append([(int(c), float(counts[c] / len(known))) for c in order if counts[c]])
    return mixes
