"""Multinomial logistic regression on features: the solver of the fast linear probe."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from mocokit.errors import UserError

GRADIENT_TOLERANCE = 1e-6  # probabilities then agree with scikit-learn's to 1e-4 at l2s down to 1e-4
MOST_ITERATIONS = 2000
HISTORY = 20
NOT_FINITE = "the encoder gives features that are infinite or not a number; pretrain again with a lower --lr"
CHUNK_LOGITS = 2**24  # held at once: 128 MB, and as much again for their gradient


@dataclass(frozen=True)
class LinearClassifier:
    """Scores of C classes, linear in features: ``weight`` [C, D] float32, ``bias`` [C] float32, on the CPU.

    ``l2`` is that of the L2 penalty it was solved with, None if it was learned in another way.
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
    device: torch.device,
    tolerance: float = GRADIENT_TOLERANCE,
) -> Iterator[LinearClassifier]:
    """One classifier for each l2, each solved from the solution before it.

    Minimises mean cross entropy + l2 / 2 * |W|^2 over the weights W of standardised features and the biases,
    which are not penalised; scikit-learn's ``LogisticRegression`` at C = 1 / (l2 * N) has the same minimum
    for more than two classes. L-BFGS with strong Wolfe line search in float64, the features in memory at once.

    Args:
        features: [N, D] float32, standardised here by their own mean and standard deviation.
        labels: [N] int64; a class that is not among them gets the score -inf.
        classes: C.
        l2s: positive, best from strong to weak.
        device: where to solve; a device without float64 is not used.
        tolerance: the largest component of the gradient at a solution, unless 2,000 iterations don't get there.

    Raises:
        UserError: features are infinite or not a number.
    """
    if not features.isfinite().all():
        raise UserError(NOT_FINITE)
    device = device if device.type != "mps" else torch.device("cpu")
    x = features.to(device).double()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std[std <= 1e-6 * mean.abs()] = torch.inf  # a constant feature, up to rounding: no weight
    x = (x - mean) / std
    present, y = labels.to(device).unique(return_inverse=True)
    W = x.new_zeros(len(present), x.shape[1], requires_grad=True)
    b = x.new_zeros(len(present), requires_grad=True)
    for l2 in l2s:
        _minimise(x, y, W, b, l2, tolerance)
        weight, bias = x.new_zeros(classes, x.shape[1]), x.new_full((classes,), -torch.inf)
        weight[present] = W.detach() / std
        bias[present] = b.detach() - weight[present] @ mean
        yield LinearClassifier(weight.float().cpu(), bias.float().cpu(), l2)


def _minimise(x: Tensor, y: Tensor, W: Tensor, b: Tensor, l2: float, tolerance: float) -> None:
    """Move the weights W [C, D] and biases b [C] to the minimum, in place."""
    solver = torch.optim.LBFGS(
        [W, b],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )
    chunk = max(1, CHUNK_LOGITS // len(b))

    def loss() -> Tensor:
        solver.zero_grad()
        total = l2 / 2 * W.square().sum()
        total.backward()
        for some_x, some_y in zip(x.split(chunk), y.split(chunk), strict=True):
            part = cross_entropy(linear(some_x, W, b), some_y, reduction="sum") / len(x)
            part.backward()
            total = total + part.detach()
        return total.detach()

    solver.step(loss)
