"""Multinomial logistic regression on features: the solver of the fast linear probe."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from mocokit.machine import blas_shared

GRADIENT_TOLERANCE = 1e-7  # probabilities are then exact to 1e-4 (6e-5 where measured); at 1e-6 they were off by 5e-4
MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class LinearClassifier:
    """Scores of C classes, linear in features: ``weight`` [C, D] float32, ``bias`` [C] float32, on the CPU.

    ``l2`` is the strength of the L2 penalty it was fitted with, None without one.
    """

    weight: Tensor
    bias: Tensor
    l2: float | None = None

    def scores(self, features: Tensor) -> Tensor:
        """Logits [N, C] of features [N, D]."""
        return linear(features, self.weight, self.bias)


def logistic_path(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2s: Iterable[float],
    tolerance: float = GRADIENT_TOLERANCE,
    one_scale: bool = False,
) -> Iterator[LinearClassifier]:
    """One classifier for each l2, each fitted from the solution before it by scikit-learn's L-BFGS in float64.

    Minimises mean cross entropy + l2 / 2 * |W|^2 over the weights W of standardised features and the biases, which
    are not penalised.

    Args:
        features: [N, D] float32; standardised here by their own mean and standard deviation.
        labels: [N] int64 below ``classes``; a class without images gets the score -inf.
        l2s: positive, best from strong to weak.
        tolerance: the largest component of the gradient at a solution, unless 2,000 iterations are not enough.
        one_scale: divide all features by one number, not each by its deviation: of principal components, of which the
            last would come to be worth as much as the first.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = features.double().numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    if one_scale:
        std[:] = np.sqrt(np.square(std).mean())
    std[std <= 1e-6 * np.abs(mean)] = np.inf  # a constant feature, up to rounding: no weight
    x = (x - mean) / std
    present = np.unique(labels)
    # With two classes scikit-learn has a single weight vector, the difference of ours: half of the penalty.
    penalty_share = 0.5 if len(present) == 2 else 1.0
    model = LogisticRegression(tol=tolerance, max_iter=MAX_ITERATIONS, warm_start=True)
    for l2 in l2s:
        weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -np.inf)
        bias[present] = 0
        if len(present) > 1:
            model.C = 1 / (penalty_share * l2 * len(x))
            with blas_shared(), warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterate is good enough
                model.fit(x, labels)
            W, b = model.coef_, model.intercept_
            if len(present) == 2:
                W, b = np.concatenate([-W, W]) / 2, np.concatenate([-b, b]) / 2
            weight[present] = W / std
            bias[present] = b - weight[present] @ mean
        yield LinearClassifier(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), l2)
