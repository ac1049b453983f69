"""Groups of images that lie together in feature space, and the most typical images of each."""

import math
import warnings
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mocokit.deploy.nearest import unit
from mocokit.machine import blas_shared
from mocokit.seeding import derive_seed

FEWEST, MOST, PER_CLUSTER = 2, 20, 10
MANY_IMAGES = 20_000  # more are clustered in batches
STARTS = 4  # of which the best is taken
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
    from sklearn.decomposition import PCA

    x = unit(features.numpy()).numpy()
    if x.shape[1] > COMPONENTS < len(x):
        with blas_shared():
            x = PCA(COMPONENTS, random_state=0).fit_transform(x)
    of = kmeans(x, min(k or cluster_count(len(x)), len(x)), seed, STARTS)
    centres = np.stack([x[of == number].mean(axis=0) for number in range(of.max() + 1)])
    order = np.lexsort((np.linalg.norm(x - centres[of], axis=1), of))
    return Clusters(of, np.split(order, np.cumsum(np.bincount(of))[:-1]))


def kmeans(x: np.ndarray, most: int, seed: int, starts: int = 1) -> np.ndarray:
    """The cluster of each row of ``x``, [N] int64: 0 the largest, of equal ones that with the first row.

    The best of so many ``starts``; the same to the bit for the same seed, whatever the number of threads.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    kind = MiniBatchKMeans if len(x) > MANY_IMAGES else KMeans
    with threadpool_limits(1), warnings.catch_warnings():  # threads add their sums in the order in which they end
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        found = kind(most, n_init=starts, random_state=derive_seed(seed, "clusters") % 2**32).fit(x).labels_
    _, first, inverse, sizes = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    return np.lexsort((first, -sizes)).argsort()[inverse]


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
