"""How good a classifier is: accuracies, figures of each class, confusions and an interval, from its scores alone.

The linear probe and fine-tuning report these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from mocokit.seeding import derive_seed

RESAMPLES = 10_000
MATRIX_CLASSES = 200  # above, a confusion matrix fills a file and tells nobody anything


@dataclass(frozen=True)
class Classification:
    """What a classifier made of N labelled images of C classes. All figures are fractions from 0 to 1.

    Attributes:
        labels, predicted: [N] int64, the true class and the one with the highest score.
        classes: C; some may have no image.
        top1, top5: share of images whose class has the highest score, or is among the five highest.
        ci95: 95 % interval of ``top1``, see `bootstrap_interval`.
    """

    labels: Tensor
    predicted: Tensor
    classes: int
    top1: float
    top5: float
    ci95: tuple[float, float]

    @property
    def images(self) -> Tensor:
        """Images of each class, [C] int64."""
        return self.labels.bincount(minlength=self.classes)

    @property
    def recall(self) -> Tensor:
        """Share of each class's images that were recognised, [C] float64; NaN for a class without images."""
        return self._right / self.images.double()

    @property
    def precision(self) -> Tensor:
        """Share of right ones among predictions of each class, [C] float64; NaN if it was never predicted."""
        return self._right / self.predicted.bincount(minlength=self.classes).double()

    @property
    def balanced(self) -> float:
        """Mean recall of the classes that have images."""
        return float(self.recall.nanmean())

    @property
    def confusion(self) -> Tensor:
        """How many images of each class (row) were taken for each class (column), [C, C] int64."""
        pairs = self.labels * self.classes + self.predicted
        return pairs.bincount(minlength=self.classes**2).view(self.classes, self.classes)

    @property
    def _right(self) -> Tensor:
        return self.labels[self.labels == self.predicted].bincount(minlength=self.classes)

    def as_dict(self, label_names: tuple[str, ...]) -> dict[str, Any]:
        """Plain values, fit for JSON: ``top1, top5, balanced, ci95, per_class, confusion``.

        Figures that are undefined are None, and so is the confusion matrix of more than 200 classes.
        """
        figures = zip(
            label_names, self.precision.tolist(), self.recall.tolist(), self.images.tolist(), strict=True
        )
        return {
            "top1": self.top1,
            "top5": self.top5,
            "balanced": self.balanced,
            "ci95": list(self.ci95),
            "per_class": {
                name: {"precision": _defined(precision), "recall": _defined(recall), "images": images}
                for name, precision, recall, images in figures
            },
            "confusion": self.confusion.tolist() if self.classes <= MATRIX_CLASSES else None,
        }


def classify(scores: Tensor, labels: Tensor, seed: int = 0) -> Classification:
    """Judge a classifier by its scores.

    Args:
        scores: [N, C] logits or probabilities; a class with the score -inf is never predicted, not even as fifth.
        labels: [N] int64 from 0 to C - 1, N at least 1.
        seed: of the interval.
    """
    scores, labels = scores.detach().cpu(), labels.cpu()
    highest = scores.topk(min(5, scores.shape[1]), dim=1)
    right = (highest.indices == labels[:, None]) & (highest.values > -torch.inf)
    top1, top5 = float(right[:, 0].double().mean()), float(right.any(dim=1).double().mean())
    return Classification(
        labels=labels,
        predicted=highest.indices[:, 0],
        classes=scores.shape[1],
        top1=top1,
        top5=top5,
        ci95=bootstrap_interval(top1, len(labels), seed),
    )


def bootstrap_interval(accuracy: float, images: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of an accuracy over the test images (Efron 1979).

    A resample of images that are right or wrong has a binomial number of right ones, so that number is drawn
    instead of the images. Where every image is right, or none, the resamples cannot differ and neither do the ends.
    """
    draws = np.random.default_rng(derive_seed(seed, "bootstrap")).binomial(images, accuracy, RESAMPLES)
    low, high = np.quantile(draws / images, [0.025, 0.975])
    return float(low), float(high)


def t_interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of at least two repeated measurements (Student's t), cut to 0 and 1."""
    values = np.asarray(accuracies)
    error = values.std(ddof=1) / len(values) ** 0.5
    reach = float(stdtrit(len(values) - 1, 0.975) * error)
    return max(0.0, float(values.mean()) - reach), min(1.0, float(values.mean()) + reach)


def _defined(figure: float) -> float | None:
    return None if figure != figure else figure
