"""The baselines of every evaluation: the same network before training, and features that take no network."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from mocokit.console import progress
from mocokit.data.store import ImageSet
from mocokit.evaluation.features import BATCH, SIMPLE, Simple, extract, rows_of
from mocokit.evaluation.splits import Subset
from mocokit.machine import CORES
from mocokit.model.encoder import Encoder, EncoderSpec

CALIBRATION_IMAGES = 2048
Features = Callable[[Subset], Tensor]  # those of some images, [N, D] float32


def random_encoder(spec: EncoderSpec, seed: int, images: ImageSet, device: str) -> Encoder:
    """The encoder that a run with this seed started from, in evaluation mode.

    Its batch-norm statistics are those of ``images``: with mean 0 and variance 1 it would score several points lower.
    """
    encoder = Encoder.create(spec, seed).to(device)
    encoder.name = "the random initialisation"
    indices = torch.arange(len(images))[:: max(1, len(images) // CALIBRATION_IMAGES)]
    batches = [batch for batch in indices.split(BATCH) if len(batch) > 1]
    with CORES.shared(), progress("statistics of the random initialisation") as report:

        def views() -> Iterator[Tensor]:
            for done, batch in enumerate(batches, 1):
                yield spec.view(*rows_of(images, batch, encoder.device))
                report(done, len(batches))

        update_bn(views(), encoder.backbone)
    return encoder.eval()


def features_of(encoder: Encoder) -> Features:
    """An encoder's features."""
    return lambda part: extract(encoder, part.images, part.indices)


def simple_features(image_size: int) -> dict[str, Features]:
    """Those of `SIMPLE`, beside an encoder of images of that size."""

    def features(simple: Simple) -> Features:
        return lambda part: simple.extract(part.images, image_size, part.indices)

    return {key: features(simple) for key, simple in SIMPLE.items()}


def row_name(key: str, channels: int) -> str:
    """What a table calls the row with this key of results; a histogram is of what there is."""
    if key == "colour_histogram":
        return {1: "gray histogram", 3: "colour histogram"}.get(channels, "channel histogram")
    return key.replace("random_init", "random init").replace("_", " ")
