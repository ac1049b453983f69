"""The one way to encode many images, used by every evaluation and by ``mocokit embed``."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mocokit.model.encoder import Encoder, evaluating

MANY = 100  # images from which on the folded encoder pays; it breaks even there at 32 pixels
MIN_BATCH = 32  # images that one core encodes at once


def streams(device: torch.device, images: int) -> int:
    """How many batches are encoded at the same time, for so many images in total.

    On a CPU each stream computes alone on one core: threads that share every operation wait for each other.
    """
    several = device.type == "cpu" and images >= MANY
    return max(1, min(torch.get_num_threads(), images // MIN_BATCH)) if several else 1


def batch_size(device: torch.device, images: int, largest: int = 256) -> int:
    """Images in a batch for `encode`: at most about ``largest`` are encoded at the same time."""
    parallel = streams(device, images)
    return largest if parallel == 1 else max(MIN_BATCH, largest // parallel)


def encode(
    encoder: Encoder, batches: Iterable[tuple[Tensor, ...]], *, images: int, precision: str = "fp32"
) -> Generator[Tensor, None, None]:
    """Encode batches in order; the next ones are read while these are encoded.

    Args:
        encoder: in evaluation mode until the last batch is encoded, then as it was.
        batches: pixels [B, C, H, W] uint8 and true (height, width) [B, 2], on the CPU; or views [B, C, S, S] float32
            alone, that were made of them. B may be 0.
        images: about how many there are in total; from `MANY` on batch norm is folded into the convolutions.
        precision: ``fp32`` or ``bf16``, whatever autocast says outside.

    Yields:
        Features [B, D] float32 on the CPU, of each batch.

    Raises:
        NonFiniteFeatures: some are infinite or not a number.
    """
    if images >= MANY:
        encoder = encoder.for_evaluation()
    parallel, threads = streams(encoder.device, images), torch.get_num_threads()
    pool = ThreadPoolExecutor(parallel, initializer=torch.set_num_threads, initargs=(threads if parallel == 1 else 1,))
    pending: deque[Future[Tensor]] = deque()
    with evaluating(encoder):
        try:
            for batch in batches:
                pending.append(pool.submit(_features, encoder, batch, precision))
                if len(pending) > parallel:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


@torch.inference_mode()
def _features(encoder: Encoder, batch: tuple[Tensor, ...], precision: str) -> Tensor:
    images, *sizes = batch
    if not len(images):
        return torch.empty(0, encoder.dim)
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
        images = images.to(encoder.device)
        features: Tensor = encoder(images, *sizes) if sizes else encoder.backbone(images)
        return encoder.checked(features.float().cpu())
