"""How good features are without labels: each score is a function of features alone.

`SCORES` declares them once, for training, its verdict and ``mocokit scorecard``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

COLLAPSED = 2  # effective rank below which features lie on one line


@torch.inference_mode()
def rankme(features: Tensor) -> float:
    """Effective rank of features [N, D], from 1 (all on one line: collapsed) to min(N, D)."""
    singular = torch.linalg.svdvals(features.double())
    p = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    return float((-(p * p.log()).sum()).exp())


@torch.inference_mode()
def effective_dimension(features: Tensor) -> float:
    """Participation ratio of features [N, D], from 1 (all variance in one direction) to min(N - 1, D); 0 without any.

    Unlike RankMe it removes the mean and uses variances, not their roots, so many weak directions add little.
    """
    x = features.double()
    x = x - x.mean(dim=0)
    if x.abs().max() <= 1e-6 * features.abs().max():  # rounding of the mean is no variance
        return 0.0
    x /= x.abs().max()
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the same eigenvalues, but for zeros
    return float(gram.trace().square() / gram.square().sum())


@torch.inference_mode()
def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of unit features [N, D] of two views, from 0 (equal) to 4."""
    return float((normalize(first, dim=1) - normalize(second, dim=1)).square().sum(dim=1).mean())


@torch.inference_mode()
def uniformity(features: Tensor) -> float:
    """Log of the mean Gaussian potential over pairs of unit features [N, D], from -8 to 0 (collapsed)."""
    distances = torch.pdist(normalize(features.double(), dim=1))
    return float((-2 * distances.square()).exp().mean().log())


@torch.inference_mode()
def retrieved(first: Tensor, second: Tensor) -> Tensor:
    """Whether an image's second view [N, D] is the nearest (cosine) among all second views to its first: [N] bool.

    Ties count as misses, so that collapsed features score nothing.
    """
    similarity = normalize(first.float(), dim=1) @ normalize(second.float(), dim=1).T
    own = similarity.diagonal().clone()
    similarity.fill_diagonal_(-torch.inf)
    return own > similarity.max(dim=1).values


def retrieval(first: Tensor, second: Tensor) -> float:
    """Share of images that are `retrieved`, from 0 to 1; chance is 1/N."""
    return float(retrieved(first, second).double().mean())


@dataclass(frozen=True)
class Score:
    """One label-free score and what a reader needs to judge a value.

    ``better`` is "higher" or "lower". ``measure(plain, first, second)`` computes it of features [N, D] of images and of
    their two augmented views; ``meaning(value, before)`` says in a sentence what a value means, compared with that of
    the random initialisation.
    """

    name: str
    better: str
    range: str
    definition: str
    source: str
    measure: Callable[[Tensor, Tensor, Tensor], float]
    meaning: Callable[[float, float], str]


def _change(value: float, before: float, form: str) -> str:
    shown = format(before, form)
    if shown == format(value, form):
        return "as at random initialisation"
    return f"{'up' if value > before else 'down'} from {shown} at random initialisation"


def _rankme_meaning(value: float, before: float) -> str:
    if max(value, before) < COLLAPSED:
        change = _change(value, before, ".1f")
        return f"an effective rank of {value:.1f}, {change}: there are two images, or all are but alike"
    if value < COLLAPSED:
        return f"collapsed: an effective rank of {value:.1f} is that of features on one line"
    return f"the features use about {value:.1f} directions, {_change(value, before, '.1f')}"


def _dimension_meaning(value: float, before: float) -> str:
    return f"the variance is that of {value:.1f} equally strong directions, {_change(value, before, '.1f')}"


def _alignment_meaning(value: float, before: float) -> str:
    cosine, cosine_before = 1 - value / 2, 1 - before / 2  # of unit vectors at these squared distances
    change = _change(cosine, cosine_before, ".2f")
    advice = "judge it together with uniformity, because identical features align best"
    return f"two views of an image have a cosine of {cosine:.2f}, {change}; {advice}"


def _uniformity_meaning(value: float, before: float) -> str:
    how = "more evenly than" if value < before else "less evenly than" if value > before else "as evenly as"
    return f"features of different images are spread over the sphere {how} at random initialisation"


def _retrieval_meaning(value: float, before: float) -> str:
    return f"for {value:.1%} of the images the nearest other view is their own, {_change(value, before, '.1%')}"


SCORES = (
    Score(
        "rankme", "higher", "1 to min(images, features)",
        "effective rank: exp of the entropy of the normalised singular values",
        "Garrido et al. 2023, arXiv 2210.02885, eq. 1",
        lambda plain, first, second: rankme(plain), _rankme_meaning,
    ),
    Score(
        "effective_dimension", "higher", "1 to min(images - 1, features)",
        "participation ratio of the eigenvalues of the covariance: (sum l)^2 / sum l^2",
        "Gao et al. 2017, bioRxiv 214262",
        lambda plain, first, second: effective_dimension(plain), _dimension_meaning,
    ),
    Score(
        "alignment", "lower", "0 to 4",
        "mean squared distance of the unit features of two views of an image",
        "Wang and Isola 2020, arXiv 2005.10242, section 4.1.1",
        lambda plain, first, second: alignment(first, second), _alignment_meaning,
    ),
    Score(
        "uniformity", "lower", "-8 to 0",
        "log of the mean of exp(-2 squared distance) over pairs of unit features",
        "Wang and Isola 2020, arXiv 2005.10242, section 4.1.2",
        lambda plain, first, second: uniformity(first), _uniformity_meaning,
    ),
    Score(
        "retrieval", "higher", "0 to 1, chance 1/images",
        "share of images whose other view is nearest by cosine among all other views",
        "instance discrimination, Wu et al. 2018, arXiv 1805.01978",
        lambda plain, first, second: retrieval(first, second), _retrieval_meaning,
    ),
)  # fmt: skip
