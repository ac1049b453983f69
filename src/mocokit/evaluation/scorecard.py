"""How good features are when there are no labels: each score is a function of features alone."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.inference_mode()
def rankme(features: Tensor) -> float:
    """Effective rank of the features [N, D]: exp of the entropy of the normalised singular values.

    From 1 (all features on one line: collapsed) to min(N, D). Garrido et al. 2023, arXiv 2210.02885, eq. 1.
    """
    singular = torch.linalg.svdvals(features.double())
    p = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    return float((-(p * p.log()).sum()).exp())


@torch.inference_mode()
def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the unit features [N, D] of two views of the same images, from 0 to 4.

    Lower is better. Wang and Isola 2020, arXiv 2005.10242, section 4.1.1, with alpha = 2.
    """
    return float((normalize(first, dim=1) - normalize(second, dim=1)).square().sum(dim=1).mean())


@torch.inference_mode()
def uniformity(features: Tensor) -> float:
    """Log of the mean Gaussian potential over pairs of unit features [N, D], from -8 to 0.

    Lower is better: features that spread over the sphere. 0 is collapse. Wang and Isola 2020, section 4.1.2,
    with t = 2.
    """
    z = normalize(features.double(), dim=1)
    squared = 2 - 2 * (z @ z.T)
    n = len(z)
    pairs = (-2 * squared).exp().sum() - (-2 * squared.diagonal()).exp().sum()
    return float((pairs / (n * (n - 1))).log())


@torch.inference_mode()
def retrieval(first: Tensor, second: Tensor) -> float:
    """Share of images whose second view [N, D] is the nearest (cosine) among all second views to their first.

    From 0 to 1; chance is 1/N. Ties count as misses, so that collapsed features score nothing.
    """
    similarity = normalize(first.float(), dim=1) @ normalize(second.float(), dim=1).T
    own = similarity.diagonal().clone()
    similarity.fill_diagonal_(-torch.inf)
    return float((own > similarity.max(dim=1).values).double().mean())
