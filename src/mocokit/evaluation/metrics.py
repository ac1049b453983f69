"""Metrics of a classifier from its scores, and their confidence intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

MAX_CONFUSION_CLASSES = 200  # a larger confusion matrix fills the result file and is not readable
Z95 = 1.959963984540054  # a normal variable lies within it in 95 % of cases


def classification_metrics(
    scores: Tensor, labels: Tensor, label_names: Sequence[str], trained: int | None = None
) -> dict[str, Any]:
    """Metrics of a classifier, as plain values for JSON. All are fractions from 0 to 1.

    On equal scores the first class is predicted. A class with the score -inf is never predicted, not even as fifth.

    Args:
        scores: [N, C] logits or probabilities, on any device.
        labels: [N] int64 from 0 to C - 1, N at least 1.
        label_names: of the C classes.
        trained: how many of them had images to learn from; None: all.

    Returns:
        ``top1``; ``top5``, None for five classes or fewer that train; ``balanced``, the mean recall of the classes that
        have images; ``ci95`` and ``balanced_ci95``, the 95 % intervals of top1 (`wilson_interval`) and balanced
        (`balanced_interval`);
        ``per_class``, ``{name: {precision, recall, images}}``, with None where a figure is undefined; ``confusion``
        [C, C], images by true class (row) and predicted class (column), or None for more than 200 classes.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    scores, labels = scores.detach().cpu(), labels.cpu()
    top1, top5 = top_shares(rank_of_class(scores, labels), trained or scores.shape[1])
    predicted, classes = scores.argmax(dim=1), range(scores.shape[1])
    per_class = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=np.nan)
    _, recalls, _, images = (figure[per_class[3] > 0] for figure in per_class)
    small = len(classes) <= MAX_CONFUSION_CLASSES
    return {
        "top1": top1,
        "top5": top5,
        "balanced": float(recalls.mean()),
        "ci95": list(wilson_interval(top1, len(labels))),
        "balanced_ci95": list(balanced_interval(recalls, images)),
        "per_class": {
            name: {"precision": _defined(p), "recall": _defined(r), "images": int(n)}
            for name, p, r, _, n in zip(label_names, *per_class, strict=True)
        },
        "confusion": confusion_matrix(labels, predicted, labels=classes).tolist() if small else None,
    }


def recalls(right: Tensor, labels: Tensor, label_names: Sequence[str]) -> dict[str, Any]:
    """``balanced`` and ``per_class``, ``{name: {recall, images}}``, as in `classification_metrics`, from which images
    are ``right`` [N] bool."""
    images = labels.bincount(minlength=len(label_names))
    found = labels[right].bincount(minlength=len(label_names)).double() / images  # nan of a class without images
    return {
        "balanced": float(found[images > 0].mean()),
        "per_class": {
            name: {"recall": _defined(recall), "images": n}
            for name, recall, n in zip(label_names, found.tolist(), images.tolist(), strict=True)
        },
    }


def top_shares(ranks: Tensor, classes: int) -> tuple[float, float | None]:
    """Shares of images whose class, by its rank [N] among so many ``classes``, is the first and among the first five.

    The latter is None for five classes or fewer, of which it says nothing.
    """
    top1, top5 = (float((ranks < k).double().mean()) for k in (1, 5))
    return top1, top5 if classes > 5 else None


def rank_of_class(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes are predicted before the true one, which is in the top k if its rank is below k: [N] int64.

    Of scores [N, C] and labels [N] int64 on one device; on equal scores the first class is predicted, one with the
    score -inf never. Unlike scikit-learn's `top_k_accuracy_score` it accepts two classes and the score -inf.
    """
    true_score = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > true_score) | ((scores == true_score) & earlier)).sum(dim=1)
    return rank.masked_fill(~(true_score[:, 0] > -torch.inf), torch.iinfo(rank.dtype).max)


def wilson_interval(accuracy: ArrayLike, images: ArrayLike) -> tuple[Any, Any]:
    """95 % interval of an accuracy measured on ``images`` images (Wilson 1927, doi 10.2307/2276774); or of several.

    Unlike a bootstrap's it is no point at 0 and 1, and covers the truth near them.
    """
    p, z2 = np.asarray(accuracy, np.float64), Z95**2 / np.asarray(images, np.float64)
    centre, half_width = p + z2 / 2, np.sqrt(z2 * (p * (1 - p) + z2 / 4))
    low, high = np.clip(np.stack([centre - half_width, centre + half_width]) / (1 + z2), 0, 1)
    low, high = np.minimum(low, p), np.maximum(high, p)  # p is within, also where sums are rounded
    return (low, high) if p.ndim else (float(low), float(high))


def balanced_interval(recalls: ArrayLike, images: ArrayLike) -> tuple[float, float]:
    """95 % interval of the mean of ``recalls``, each measured on so many ``images`` of its own.

    The distances to Wilson's limits add up as independent errors do, below and above each for itself (Zou and Donner
    2008, doi 10.1002/sim.3095).
    """
    recalls = np.asarray(recalls)
    low, high = wilson_interval(recalls, images)
    return _around(recalls.mean(), np.linalg.norm([recalls - low, high - recalls], axis=1) / len(recalls))


def repeated_interval(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean of figures of several trainings, each with its interval over the same images.

    Student's t says how the mean varies with what was trained on, the mean of ``intervals`` how it varies with the
    images; both add up as in `balanced_interval`. That is rather too wide, for the trainings do not all err on the same
    images. Of one training it is the interval over the images.
    """
    from scipy.stats import sem, t

    mean, (low, high) = float(np.mean(values)), np.mean(intervals, axis=0)
    repeats = len(values)
    half_width = t.ppf(0.975, repeats - 1) * sem(values) if repeats > 1 else 0.0
    return _around(mean, np.hypot(half_width, [mean - low, high - mean]))


def mcnemar(right: Tensor, before: Tensor) -> float:
    """Chance that ``right`` [N] bool has so many more images than ``before`` if both are equally good (the p-value).

    McNemar's exact test, one-sided (1947, doi 10.1007/BF02295996): of the images that only one of them has right, each
    has half of them. Both are of the same images, most of which are easy or hard for both, so that it sees smaller
    differences than a comparison of two intervals.
    """
    from scipy.stats import binomtest

    gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
    return float(binomtest(gained, gained + lost, alternative="greater").pvalue) if gained + lost else 1.0


def _around(value: float, distances: NDArray[np.float64]) -> tuple[float, float]:
    """From ``value`` down and up by the two ``distances``, within 0 and 1."""
    low, high = np.clip([value - distances[0], value + distances[1]], 0, 1)
    return float(low), float(high)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
