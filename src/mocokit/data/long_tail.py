"""Long-tailed subsets of labelled images and their balanced twins: how many of each class, and which images."""

import numpy as np

from mocokit.errors import UserError
from mocokit.seeding import derive_seed

AS_THEY_ARE = 0  # in the place of an imbalance: every class keeps its share
_EXACT = 1 + 1e-12  # 49 times a 49th is 1, also where numbers are rounded


def profile(classes: int, imbalance: float) -> np.ndarray:
    """Shares of the largest class: r^(-i / (C - 1)) for i from 0 to C - 1, float64 [C] (Cui et al. 2019,
    arXiv 1901.05555, section 5.1, where 1 / r is mu^(C - 1))."""
    return imbalance ** (-np.arange(classes) / max(1, classes - 1))


def apportion(shares: np.ndarray, images: int, least: int = 0) -> np.ndarray:
    """Whole numbers, int64 [C], that add up to ``images`` and are each the floor of a share of one common number.

    This is Jefferson's method, so that more images take none from any class: subsets can be nested. Every class gets
    ``least``, which together are at most ``images``.
    """

    def floors(largest: float) -> np.ndarray:
        return np.maximum(least, np.floor(largest * shares * _EXACT)).astype(np.int64)

    low, high = 0.0, (images + len(shares) + 1) / float(shares.sum())
    while low < (middle := (low + high) / 2) < high:  # to neighbouring numbers, which several classes may jump between
        low, high = (middle, high) if floors(middle).sum() < images else (low, middle)
    counts, upper = floors(low), floors(high)
    if counts.sum() < images:
        counts[np.flatnonzero(upper > counts)[: images - counts.sum()]] += 1
    return counts


def class_counts(available: np.ndarray, images: int | None, imbalance: float, seed: int) -> np.ndarray:
    """How many images of each class a subset has: int64 [C], 0 where none are ``available`` [C].

    The i-th of the classes, in an order that ``seed`` draws, has n_max r^(-i / (C - 1)), rounded down, with r the
    ``imbalance``; n_max is such that there are so many ``images`` in all, whatever r is, or, for None, as large as
    the classes allow. An imbalance of 0 leaves the classes their shares.

    Raises:
        UserError: there are fewer than two classes, or too few images of one.
    """
    there = np.flatnonzero(available)
    most, classes = available[there], len(there)
    if classes < 2:
        raise UserError(f"--imbalance {imbalance:g}: needs labels, of two classes at least; give --limit alone")
    if 0 < imbalance < 1:
        raise UserError(f"--imbalance {imbalance:g}: is largest class by smallest, so 1 or more; 0: as they are")
    counts = np.zeros_like(available)
    if imbalance == AS_THEY_ARE:
        images = min(images or int(most.sum()), int(most.sum()))
        if images < classes:
            raise UserError(f"--limit {images}: is fewer than the {classes} classes; give {classes} at least")
        counts[there] = np.minimum(apportion(most / most.max(), images, least=1), most)
        return counts
    order = np.random.default_rng(derive_seed(seed, "order of classes")).permutation(classes)
    shares = np.empty(classes)
    shares[order] = profile(classes, imbalance)
    largest = float((most / shares).min())
    fits, needed = (int(np.floor(n * shares * _EXACT).sum()) for n in (largest, imbalance))
    if largest * _EXACT < imbalance:  # the smallest class would be empty
        with np.errstate(divide="ignore"):
            best = (most[order] ** (1 / (1 - np.linspace(0, 1, classes))))[:-1].min()
        raise UserError(
            f"--imbalance {imbalance:g}: the classes have too few images; with this --seed, which draws their order, "
            f"at most {np.floor(best * 100) / 100:g} fits"
        )
    images = fits if images is None else images
    if images < needed:
        raise UserError(
            f"--limit {images}: leaves the smallest class no image at --imbalance {imbalance:g}; give {needed} at least"
        )
    counts[there] = apportion(shares, images)
    if (counts > available).any():
        raise UserError(f"--limit {images}: some class has too few images for --imbalance {imbalance:g}; {fits} fit")
    return counts


def long_tail(labels: np.ndarray, images: int | None, imbalance: float, seed: int) -> np.ndarray:
    """Which of the images with these ``labels`` (int64 [N], -1 for none) are in the subset of `class_counts`: ascending
    indices, int64.

    Of each class the first in an order that ``seed`` draws, whatever the other arguments: where a class has no more
    images in one subset than in another, the other holds them all. Images without a label are left out.
    """
    known = np.flatnonzero(labels >= 0)
    counts = class_counts(np.bincount(labels[known]), images, imbalance, seed)
    shuffled = np.random.default_rng(derive_seed(seed, "order of images")).permutation(known)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    classes = labels[by_class]
    rank = np.arange(len(by_class)) - np.searchsorted(classes, classes)
    return np.sort(by_class[rank < counts[classes]])
