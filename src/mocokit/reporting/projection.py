"""The map of all images: their features projected to two dimensions, near ones near each other, by t-SNE."""

import importlib.util

import numpy as np
import torch
from torch import Tensor

from mocokit.deploy.nearest import unit
from mocokit.errors import UserError
from mocokit.reporting.neighbours import Neighbours

PERPLEXITY = 30
FEWEST = 10  # images from which on t-SNE has something to arrange; fewer lie where PCA puts them
MANY = 5000  # images from which on interpolation is faster than the tree (docs/LOG.md, 2026-11-27)
_SPREAD = 1e-4  # standard deviation of the start (Kobak and Berens 2019, doi 10.1038/s41467-019-13056-x)


def is_installed() -> bool:
    """Whether the packages of the extra ``report`` are."""
    return all(importlib.util.find_spec(package) for package in ("bokeh", "openTSNE"))


def check_installed(what: str) -> None:
    """Raise a UserError unless they are; ``what`` needs them."""
    if not is_installed():
        raise UserError(f"{what} needs more packages: pip install 'mocokit[report]'")


def project(features: Tensor, neighbours: Neighbours, seed: int) -> np.ndarray:
    """Positions [N, 2] float32 of images by their ``features`` [N, D] and ``neighbours``.

    t-SNE (van der Maaten and Hinton 2008) of openTSNE on angles between features, from the first two principal
    components, so that the same features give the same map. Perplexity 30, or a third of the neighbours that there are.
    """
    x = unit(features.numpy()).numpy()
    start = _principal(x)
    if len(x) < FEWEST:
        return start.astype(np.float32)
    from openTSNE import TSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    distances = (2 - 2 * neighbours.similarity.double()).clamp(min=0).sqrt().numpy()
    index = PrecomputedNeighbors(np.ascontiguousarray(neighbours.rows.numpy()), distances)
    jobs = torch.get_num_threads()
    perplexity = min(PERPLEXITY, index.k / 3)
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=index, n_jobs=jobs)
    jitter = np.random.default_rng(seed).normal(size=start.shape)  # equal images would stay on one point
    start = _SPREAD * (start / (start[:, 0].std() or 1) + 0.01 * jitter)
    # The default rate, N / 12, and exaggeration are those of Belkina et al. (2019, doi 10.1038/s41467-019-13055-y).
    method = "fft" if len(x) >= MANY else "bh"
    model = TSNE(n_jobs=jobs, random_state=seed, negative_gradient_method=method)
    fitted = model.fit(affinities=affinities, initialization=start)
    return np.asarray(fitted, dtype=np.float32)


def _principal(x: np.ndarray) -> np.ndarray:
    """The first two principal components of ``x`` [N, D]: [N, 2] float64; zeros where there are none."""
    centred = (x - x.mean(axis=0)).astype(np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, : -3 if directions.shape[1] > 2 else None : -1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])  # else a machine's own choice
    found = np.zeros((len(x), 2))
    found[:, : axes.shape[1]] = centred @ axes
    return found
