"""How good features are without labels: each score is a function of features alone.

`SCORES` declares them once, for training, its verdict and ``mocokit scorecard``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

COLLAPSED = 2  # effective rank below which features lie on one line


@torch.inference_mode()
def rankme(features: Tensor) -> float:
    """Effective rank of the features [N, D]: exp of the entropy of the normalised singular values.

    From 1 (all features on one line: collapsed) to min(N, D). Garrido et al. 2023, arXiv 2210.02885, eq. 1.
    """
    singular = torch.linalg.svdvals(features.double())
    p = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    return float((-(p * p.log()).sum()).exp())


@torch.inference_mode()
def effective_dimension(features: Tensor) -> float:
    """Participation ratio (sum of l)^2 / sum of l^2 of the eigenvalues l of the covariance of features [N, D].

    From 1 (all variance in one direction) to min(N - 1, D); 0 if all features are the same. Unlike RankMe it removes
    the mean and uses variances, not their roots, so many weak directions add little. Gao et al. 2017, "A theory of
    multineuronal dimensionality, dynamics and measurement", bioRxiv 214262.
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


class Views(NamedTuple):
    """Features [N, D] of the same images: as they are, and of two augmented views."""

    plain: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Score:
    """One label-free score and what a reader needs to judge a value.

    ``measure`` computes it; ``meaning(value, before)`` says in a sentence what a value means, compared with that of
    the random initialisation; ``better`` is "higher" or "lower".
    """

    name: str
    better: str
    range: str
    definition: str
    source: str
    measure: Callable[[Views], float]
    meaning: Callable[[float, float], str]


def _change(value: float, before: float, form: str) -> str:
    shown = format(before, form)
    if shown == format(value, form):
        return "as at random initialisation"
    return f"{'up' if value > before else 'down'} from {shown} at random initialisation"


def _rankme_meaning(value: float, before: float) -> str:
    if value < COLLAPSED:
        return f"collapsed: an effective rank of {value:.1f} is that of features on one line"
    return f"the features use about {value:.1f} directions, {_change(value, before, '.1f')}"


def _alignment_meaning(value: float, before: float) -> str:
    cosine, cosine_before = 1 - value / 2, 1 - before / 2  # of unit vectors at these squared distances
    return (
        f"two views of an image have a cosine of {cosine:.2f}, {_change(cosine, cosine_before, '.2f')}; "
        f"judge it together with uniformity, because identical features align best"
    )


def _uniformity_meaning(value: float, before: float) -> str:
    how = "more evenly than" if value < before else "less evenly than" if value > before else "as evenly as"
    return f"features of different images are spread over the sphere {how} at random initialisation"


SCORES = (
    Score(
        name="rankme",
        better="higher",
        range="1 to min(images, features)",
        definition="effective rank: exp of the entropy of the normalised singular values",
        source="Garrido et al. 2023, arXiv 2210.02885, eq. 1",
        measure=lambda views: rankme(views.plain),
        meaning=_rankme_meaning,
    ),
    Score(
        name="effective_dimension",
        better="higher",
        range="1 to min(images - 1, features)",
        definition="participation ratio of the eigenvalues of the covariance: (sum l)^2 / sum l^2",
        source="Gao et al. 2017, bioRxiv 214262",
        measure=lambda views: effective_dimension(views.plain),
        meaning=lambda value, before: (
            f"the variance is that of {value:.1f} equally strong directions, {_change(value, before, '.1f')}"
        ),
    ),
    Score(
        name="alignment",
        better="lower",
        range="0 to 4",
        definition="mean squared distance of the unit features of two views of an image",
        source="Wang and Isola 2020, arXiv 2005.10242, section 4.1.1",
        measure=lambda views: alignment(views.first, views.second),
        meaning=_alignment_meaning,
    ),
    Score(
        name="uniformity",
        better="lower",
        range="-8 to 0",
        definition="log of the mean of exp(-2 squared distance) over pairs of unit features",
        source="Wang and Isola 2020, arXiv 2005.10242, section 4.1.2",
        measure=lambda views: uniformity(views.first),
        meaning=_uniformity_meaning,
    ),
    Score(
        name="retrieval",
        better="higher",
        range="0 to 1, chance 1/images",
        definition="share of images whose other view is nearest by cosine among all other views",
        source="instance discrimination, Wu et al. 2018, arXiv 1805.01978",
        measure=lambda views: retrieval(views.first, views.second),
        meaning=lambda value, before: (
            f"for {value:.1%} of the images the nearest other view is their own, {_change(value, before, '.1%')}"
        ),
    ),
)
