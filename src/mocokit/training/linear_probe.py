"""The sgd protocol of the linear probe: a linear layer trained on augmented images, the encoder frozen."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from mocokit.config import ProbeConfig
from mocokit.data.classifier_views import flip_probability, training_view
from mocokit.data.loader import Batch, Batches, StepSampler
from mocokit.data.sampler import generator
from mocokit.data.store import ImageSet
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder, evaluating

INITIAL_STD = 0.01


class Epoch(NamedTuple):
    """State after an epoch: its number from 1, mean loss, validation accuracy (None without validation images), and
    the layer's ``weight`` [C, D] and ``bias`` [C] float32 on the CPU."""

    number: int
    loss: float
    val_top1: float | None
    weight: Tensor
    bias: Tensor


def sgd(
    encoder: Encoder,
    images: ImageSet,
    indices: Tensor,
    val: tuple[Tensor, Tensor] | None,
    classes: int,
    config: ProbeConfig,
) -> Iterator[Epoch]:
    """Train a linear layer on augmented images by SGD, epoch by epoch: He et al. 2020, section 4.1.

    Learning rate 30, no weight decay and no momentum, as in the notebook that mocokit grew from; weights start from
    N(0, 0.01^2). The learning rate follows half a cosine, step by step, to 0. Nothing is chosen by validation: the
    classifier to use is that of the last epoch.

    Args:
        encoder: only read; in evaluation mode meanwhile.
        images, indices: labelled images and which of them [N] int64 to train on.
        val: features [M, D] and labels [M] to report accuracy on; or None.
        classes: C.
        config: epochs, batch_size, lr, seed.

    Raises:
        UserError: the loss is infinite or not a number.
    """
    assert images.labels is not None
    device = encoder.device
    W = INITIAL_STD * torch.randn(classes, encoder.dim, generator=generator(config.seed, "probe weights"))
    W = W.to(device).requires_grad_()
    b = torch.zeros(classes, device=device, requires_grad=True)
    steps = StepSampler(images, config.batch_size, config.seed, indices)
    total = config.epochs * steps.per_epoch
    optimizer = torch.optim.SGD([W, b], lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    labels = torch.from_numpy(images.labels).to(device)
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
                raise UserError(
                    f"the loss is infinite or not a number: --lr {config.lr:g} is too high, or so was the --lr of "
                    f"pretraining; train again with a lower one"
                )
            weight, bias = W.detach().clone().cpu(), b.detach().clone().cpu()
            yield Epoch(epoch, mean_loss, val and _accuracy(weight, bias, *val), weight, bias)
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


def _accuracy(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> float:
    return float((linear(features, weight, bias).argmax(dim=1) == labels).double().mean())
