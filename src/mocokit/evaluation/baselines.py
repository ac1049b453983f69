"""The baseline of every evaluation: the same network before training."""

import torch
from torch.optim.swa_utils import update_bn

from mocokit.data.store import ImageSet
from mocokit.evaluation.features import BATCH, rows_of
from mocokit.model.encoder import Encoder, EncoderSpec

CALIBRATION_IMAGES = 2048


def random_encoder(spec: EncoderSpec, seed: int, images: ImageSet, device: str) -> Encoder:
    """The encoder that a run with this seed started from, in evaluation mode.

    Its batch-norm statistics are those of ``images``: with mean 0 and variance 1 it would score several points lower.
    """
    encoder = Encoder.create(spec, seed).to(device)
    encoder.name = "the random initialisation"
    indices = torch.arange(len(images))[:: max(1, len(images) // CALIBRATION_IMAGES)]
    views = (spec.view(*rows_of(images, batch, encoder.device)) for batch in indices.split(BATCH) if len(batch) > 1)
    update_bn(views, encoder.backbone)
    return encoder.eval()
