"""What pretrained features are compared with: the same network before training."""

import torch
from torch import nn

from mocokit.data.store import ImageSet
from mocokit.evaluation.features import BATCH, rows_of
from mocokit.model.encoder import Encoder, EncoderSpec

CALIBRATION_IMAGES = 2048


def random_encoder(spec: EncoderSpec, seed: int, images: ImageSet, device: str) -> Encoder:
    """The encoder that a run with this seed started from, batch norm calibrated on ``images``."""
    return calibrate_batch_norm(Encoder.create(spec, seed).to(device), images)


@torch.no_grad()
def calibrate_batch_norm(encoder: Encoder, images: ImageSet) -> Encoder:
    """Give an untrained encoder the batch-norm statistics of its data, in place.

    An untrained network in evaluation mode normalises by mean 0 and variance 1, which it has never seen, and
    scores several points lower than it needs to: an unfair baseline to be proud of.
    """
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    encoder.train()
    for rows in torch.arange(len(images))[:: max(1, len(images) // CALIBRATION_IMAGES)].split(BATCH):
        if norms and len(rows) > 1:
            encoder(*rows_of(images, rows, encoder.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return encoder.eval()
