"""Which images to label first: the most typical ones of as many clusters as there are labels to give."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mocokit.deploy.nearest import unit
from mocokit.reporting.clusters import kmeans

NEIGHBOURS = 20  # that an image is compared with
MOST_CLUSTERS = 500
FEW = 5  # images of a cluster that is of what is odd, where clusters have twice as many and more on average
LEAST_DISTANCE = 1e-6  # of unit vectors in float32: what is nearer is the same


class Choice(NamedTuple):
    """An image that was chosen: its ``row``; its ``cluster``, 0 being the largest; how many images that has; and the
    inverse of the mean distance to its neighbours there."""

    row: int
    cluster: int
    cluster_size: int
    typicality: float


def typiclust(features: Tensor, count: int, seed: int, given: Collection[int] = ()) -> list[Choice]:
    """Choose images to label by TypiClust (Hacohen et al. 2022, arXiv 2202.02794, algorithm 1).

    Args:
        features: [N, D] float32; directions count, not lengths.
        count: how many, from 1 to the number of images that are not ``given``.
        seed: of k-means; the same choice to the bit for the same seed, whatever the number of threads.
        given: rows that are labelled already, which are not chosen; clusters that hold some come last.

    Returns:
        Distinct rows in the order of choice. More are chosen from more clusters, so the choice of a smaller ``count``
        is not the beginning of this one; to go on from a choice, give it.
    """
    x = unit(features.numpy()).numpy()
    clusters = kmeans(x, min(len(given) + count, MOST_CLUSTERS, len(x)), seed)
    return choose(clusters, _typicality(x, clusters), count, given)


def choose(clusters: np.ndarray, typicality: np.ndarray, count: int, given: Collection[int] = ()) -> list[Choice]:
    """Each time the most typical image that is left of the largest of the clusters with the fewest labels.

    Clusters of five images or fewer come behind all others: the authors' code never chooses from them. Not so where
    clusters have fewer than ten on average: most would be such, and labels far worse than random ones (docs/LOG.md).

    ``clusters`` [N] int64 from 0, ``typicality`` [N] float; of equals the lower cluster, or row, comes first.
    """
    rows = np.delete(np.arange(len(clusters)), list(given))
    rows = rows[np.lexsort((-typicality[rows], clusters[rows]))]
    cluster, sizes = clusters[rows], np.bincount(clusters)
    # How many of its cluster have labels by the time that an image is due: given ones, and those that are more typical.
    labels = np.bincount(clusters[list(given)], minlength=len(sizes))[cluster]
    labels += np.arange(len(rows)) - np.searchsorted(cluster, cluster)
    odd = sizes[cluster] <= (FEW if len(clusters) >= 2 * FEW * len(sizes) else 0)
    order = rows[np.lexsort((cluster, -sizes[cluster], labels, odd))][:count]
    return [Choice(int(row), int(clusters[row]), int(sizes[clusters[row]]), float(typicality[row])) for row in order]


def _typicality(x: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Inverse mean Euclidean distance of each row to its nearest neighbours within its cluster: [N] float64; 0 of the
    only one."""
    from sklearn.neighbors import NearestNeighbors

    result = np.zeros(len(x))
    for cluster in range(clusters.max() + 1):
        rows = np.flatnonzero(clusters == cluster)
        if k := min(NEIGHBOURS, len(rows) - 1):
            distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x[rows]).kneighbors()
            result[rows] = 1 / distances.mean(axis=1).round(6).clip(LEAST_DISTANCE)
    return result
