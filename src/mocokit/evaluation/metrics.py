"""Metrics of a classifier from its scores, and their confidence intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_CONFUSION_CLASSES = 200  # a larger confusion matrix fills the result file and is not readable


def classification_metrics(scores: Tensor, labels: Tensor, label_names: Sequence[str]) -> dict[str, Any]:
    """Metrics of a classifier, as plain values for JSON. All are fractions from 0 to 1.

    On equal scores the first class is predicted. A class with the score -inf is never predicted, not even as fifth.

    Args:
        scores: [N, C] logits or probabilities, on any device.
        labels: [N] int64 from 0 to C - 1, N at least 1.
        label_names: of the C classes.

    Returns:
        ``top1``, ``top5``; ``balanced``, the mean recall of the classes that have images; ``ci95``, the 95 % interval
        of top1 (`wilson_interval`); ``per_class``, ``{name: {precision, recall, images}}``, with None where a figure
        is undefined; ``confusion`` [C, C], images by true class (row) and predicted class (column), or None for
        more than 200 classes.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    scores, labels = scores.detach().cpu(), labels.cpu()
    rank = rank_of_class(scores, labels)
    top1, top5 = (float((rank < k).double().mean()) for k in (1, 5))
    predicted, classes = scores.argmax(dim=1), range(scores.shape[1])
    per_class = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=np.nan)
    small = len(classes) <= MAX_CONFUSION_CLASSES
    return {
        "top1": top1,
        "top5": top5,
        "balanced": float(np.nanmean(per_class[1])),
        "ci95": list(wilson_interval(top1, len(labels))),
        "per_class": {
            name: {"precision": _defined(p), "recall": _defined(r), "images": int(n)}
            for name, p, r, _, n in zip(label_names, *per_class, strict=True)
        },
        "confusion": confusion_matrix(labels, predicted, labels=classes).tolist() if small else None,
    }


def rank_of_class(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes are predicted before the true one, which is in the top k if its rank is below k: [N] int64.

    Of scores [N, C] and labels [N] int64 on one device; on equal scores the first class is predicted, one with the
    score -inf never. Unlike scikit-learn's `top_k_accuracy_score` it accepts two classes and the score -inf.
    """
    true_score = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > true_score) | ((scores == true_score) & earlier)).sum(dim=1)
    return rank.masked_fill(~(true_score[:, 0] > -torch.inf), torch.iinfo(rank.dtype).max)


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """95 % interval of an accuracy measured on ``images`` images (Wilson 1927, doi 10.2307/2276774)."""
    from scipy.stats import binomtest

    interval = binomtest(round(accuracy * images), images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def t_interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of at least two repeated measurements (Student's t), clipped to 0 and 1."""
    from scipy.stats import sem, t

    half_width = t.ppf(0.975, len(accuracies) - 1) * sem(accuracies)
    low, high = np.clip(np.mean(accuracies) + np.array([-half_width, half_width]), 0, 1)
    return float(low), float(high)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
