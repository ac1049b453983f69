"""Linear classification on frozen features, in two protocols: what a linear probe of an encoder is.

`fast` solves a regularised problem on features extracted once; `sgd` trains on augmented images.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from mocokit.config import ProbeConfig
from mocokit.data.classifier_views import flip_probability, training_view
from mocokit.data.loader import Batch, Batches, StepSampler
from mocokit.data.sampler import generator
from mocokit.errors import UserError
from mocokit.evaluation.features import extract
from mocokit.evaluation.knn import labels_of
from mocokit.evaluation.logistic import NOT_FINITE, LinearClassifier, logistic_path
from mocokit.evaluation.splits import Subset, stratified_folds
from mocokit.model.encoder import Encoder, evaluating

L2_GRID = tuple(10 ** (exponent / 2) for exponent in range(2, -13, -1))  # 10 to 1e-6
DEFAULT_L2 = 1.0  # where there is nothing to choose by
PATIENCE = 2  # l2s in a row that are worse on the validation images
MOST_FOLDS = 5
CHOOSING_TOLERANCE = 1e-4  # of gradients; changes the validation loss in its fifth digit

INITIAL_STD = 0.01

Rows = tuple[Tensor, Tensor]  # features [N, D] and labels [N]


def fast(encoder: Encoder, train: Subset, val: Subset | None, classes: int, seed: int) -> LinearClassifier:
    """Logistic regression with an L2 penalty, on features extracted once.

    The penalty's l2 is the one with the least cross entropy on ``val``, after learning from ``train``; then
    both are learned from. Where ``val`` is None it is chosen by cross-validation within ``train``.

    Args:
        encoder: only read.
        train, val: images without overlap.
        classes: C.
        seed: of the folds.
    """
    learning = _rows(encoder, train)
    if val is None:
        masks = stratified_folds(learning[1], MOST_FOLDS, generator(seed, "probe folds"))
        folds = [(_where(learning, ~mask), _where(learning, mask)) for mask in masks]
    elif len(val):
        validation = _rows(encoder, val)
        folds = [(learning, validation)]
        learning = torch.cat([learning[0], validation[0]]), torch.cat([learning[1], validation[1]])
    else:
        folds = []
    l2 = choose_l2(folds, classes, encoder.device)
    (classifier,) = logistic_path(*learning, classes, [l2], encoder.device)
    return classifier


def choose_l2(folds: list[tuple[Rows, Rows]], classes: int, device: torch.device) -> float:
    """The l2 with the least cross entropy, summed over the validation rows of all folds.

    Cross entropy says more than accuracy, which on few images hardly differs between l2s. From strong to
    weak it falls, then rises, so the path is left once it rises.

    Args:
        folds: rows to learn from and rows to validate on; of those, classes that cannot be learned don't count.
        classes: C.
        device: where to solve.
    """
    folds = [(train, _where(val, torch.isin(val[1], train[1]))) for train, val in folds]
    if not sum(len(labels) for _, (_, labels) in folds):
        return DEFAULT_L2
    paths = [logistic_path(*train, classes, L2_GRID, device, CHOOSING_TOLERANCE) for train, _ in folds]
    best, least, worse = DEFAULT_L2, float("inf"), 0
    for l2, *classifiers in zip(L2_GRID, *paths, strict=True):
        loss = sum(
            float(cross_entropy(classifier.scores(features), labels, reduction="sum"))
            for classifier, (_, (features, labels)) in zip(classifiers, folds, strict=True)
        )
        if loss < least:
            best, least, worse = l2, loss, 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    return best


class Epoch(NamedTuple):
    """An epoch of `sgd`: its number from 1, mean loss, accuracy on the validation images (None without any)."""

    number: int
    loss: float
    val_top1: float | None
    classifier: LinearClassifier


def sgd(
    encoder: Encoder, train: Subset, val: Subset | None, classes: int, config: ProbeConfig
) -> Iterator[Epoch]:
    """Train a linear layer on augmented images by SGD, epoch by epoch: He et al. 2020, section 4.1.

    Learning rate 30, no weight decay and no momentum, as in the notebook that mocokit grew from; weights start from
    N(0, 0.01^2). The rate falls by half a cosine, step by step, to 0. Nothing is chosen: the classifier to use is that
    of the last epoch.

    Args:
        encoder: only read; in evaluation mode meanwhile.
        train: images to learn from.
        val: images that show how it goes, not learned from; or None.
        classes: C.
        config: epochs, batch_size, lr, seed.

    Raises:
        UserError: features are infinite or not a number.
    """
    device = encoder.device
    validation = _rows(encoder, val) if val else None
    W = INITIAL_STD * torch.randn(classes, encoder.dim, generator=generator(config.seed, "probe weights"))
    W = W.to(device).requires_grad_()
    b = torch.zeros(classes, device=device, requires_grad=True)
    steps = StepSampler(train.images, config.batch_size, config.seed, train.indices)
    total = config.epochs * steps.per_epoch
    optimizer = torch.optim.SGD([W, b], lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    labels = labels_of(train.images).to(device)
    loss_sum = torch.zeros((), device=device)
    for batch in Batches(steps, total, device, workers=0):
        features = _augmented_features(encoder, batch, config.seed)  # [B, D]
        loss = cross_entropy(linear(features, W, b), labels[batch.ids.to(device)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += loss.detach()
        epoch, within = divmod(batch.step + 1, steps.per_epoch)
        if within == 0:
            mean_loss = float(loss_sum) / steps.per_epoch
            if not math.isfinite(mean_loss):
                raise UserError(NOT_FINITE)
            classifier = LinearClassifier(W.detach().clone().cpu(), b.detach().clone().cpu())
            yield Epoch(epoch, mean_loss, validation and _accuracy(classifier, *validation), classifier)
            loss_sum.zero_()


@torch.no_grad()
def _augmented_features(encoder: Encoder, batch: Batch, seed: int) -> Tensor:
    """Features [B, D] float32 of one light augmentation of each image."""
    spec, draw = encoder.spec, generator(seed, "probe view", batch.step)
    flip_p = flip_probability(spec.channels)
    with evaluating(encoder):
        view = training_view(batch.images, batch.sizes, spec.image_size, spec.mean, spec.std, draw, flip_p)
        features: Tensor = encoder.backbone(view)
    return features.float()


def _accuracy(classifier: LinearClassifier, features: Tensor, labels: Tensor) -> float:
    return float((classifier.scores(features).argmax(dim=1) == labels).double().mean())


@contextmanager
def frozen(encoder: Encoder) -> Iterator[None]:
    """Assert that an encoder leaves as it came, bit by bit: weights and running statistics.

    Raises:
        AssertionError: a probe has changed the encoder; names the tensor.
    """
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    yield
    for name, tensor in encoder.state_dict().items():
        same = torch.equal(*(t.detach().reshape(-1).view(torch.uint8) for t in (tensor, before[name])))
        assert same, f"the probe changed {name} of the encoder, which has to stay frozen"


def _rows(encoder: Encoder, part: Subset) -> Rows:
    return extract(encoder, part.images, part.indices), part.labels


def _where(rows: Rows, chosen: Tensor) -> Rows:
    return rows[0][chosen], rows[1][chosen]
