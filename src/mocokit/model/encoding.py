"""The one way to encode many images, used by every evaluation and by ``mocokit embed``."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mocokit.config import Precision
from mocokit.console import say
from mocokit.machine import CORES, computes_in_bf16
from mocokit.model.arithmetic import keep, recall, shortest
from mocokit.model.conv import multiply_small
from mocokit.model.encoder import Encoder, evaluating

MANY = 100  # images from which on the folded encoder pays; it breaks even there at 32 pixels
MIN_BATCH = 32  # images that one core encodes at once
MANY_IN_BF16, TRIAL_IMAGES = 1000, 32  # images from which on bfloat16 is tried; those of the trial
BF16_GAIN, AGREEMENT = 0.9, 0.999  # share of fp32's time that bf16 must stay below; cosine of its features with fp32's


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
    encoder: Encoder, batches: Iterable[tuple[Tensor, ...]], *, images: int, precision: str | None = None
) -> Generator[Tensor, None, None]:
    """Encode batches in order; the next ones are read while these are encoded.

    Args:
        encoder: in evaluation mode until the last batch is encoded, then as it was.
        batches: pixels [B, C, H, W] uint8 and true (height, width) [B, 2], on the CPU; or views [B, C, S, S] float32
            alone, that were made of them. B may be 0.
        images: about how many there are in total; from `MANY` on a CPU folds batch norm into the convolutions.
        precision: ``fp32`` or ``bf16``, whatever autocast says outside; None for `encoding_precision`.

    Yields:
        Features [B, D] float32 on the CPU, of each batch.

    Raises:
        NonFiniteFeatures: some are infinite or not a number.
    """
    precision = precision or encoding_precision(encoder, images)
    if images >= MANY and encoder.device.type == "cpu":  # a GPU's TF32 rounds by more than a wrong fold is told by
        encoder = _prepared(encoder, precision)
    parallel, pending = streams(encoder.device, images), deque[Future[Tensor]]()
    with evaluating(encoder), CORES.shared():
        threads = torch.get_num_threads() if parallel == 1 else 1
        pool = ThreadPoolExecutor(parallel, initializer=torch.set_num_threads, initargs=(threads,))
        try:
            for batch in batches:
                pending.append(pool.submit(_features, encoder, batch, precision))
                if len(pending) > parallel:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _prepared(encoder: Encoder, precision: str) -> Encoder:
    """A copy with batch norm folded into the convolutions, those of small images products where that is faster."""
    encoder = encoder.for_evaluation()
    if precision == "bf16":
        multiply_small(encoder.backbone)
    return encoder


def encoding_precision(encoder: Encoder, images: int) -> Precision:
    """``bf16`` for so many images if this is a CPU that encodes in bfloat16 clearly faster, else ``fp32``.

    Tried with noise on the network once on each machine. Features must be the same but for their last digits, too; what
    that does to accuracy is in docs/benchmarks.md.
    """
    if images < MANY_IN_BF16 or encoder.device.type != "cpu" or not computes_in_bf16("cpu"):
        return "fp32"
    spec = encoder.spec
    what = f"encoding by {spec.backbone}, {spec.image_size} pixels, {spec.channels} channels"
    if (kept := recall(what)) not in ("fp32", "bf16"):
        kept, times = _faster(encoder)
        say(f"encoding in {kept}: an image takes {times['bf16']:.2f} ms in bf16, {times['fp32']:.2f} ms in fp32")
        keep(what, kept)
    return kept


def _faster(encoder: Encoder) -> tuple[str, dict[str, float]]:
    """The faster precision, and the milliseconds that an image takes in each."""
    spec = encoder.spec
    generator = torch.Generator().manual_seed(0)
    size = (TRIAL_IMAGES, spec.channels, spec.image_size, spec.image_size)
    noise = torch.randn(size, generator=generator).contiguous(memory_format=torch.channels_last)
    copies = {precision: _prepared(encoder, precision) for precision in ("fp32", "bf16")}
    times, features = {}, {}
    for precision, copy in copies.items():
        with evaluating(copy):
            features[precision] = _features(copy, (noise,), precision)
            times[precision] = shortest(lambda c=copy, p=precision: _features(c, (noise,), p))  # type: ignore[misc]
    agree = torch.cosine_similarity(features["fp32"], features["bf16"]).min() > AGREEMENT
    chosen = "bf16" if agree and times["bf16"] < BF16_GAIN * times["fp32"] else "fp32"
    return chosen, {precision: 1000 * seconds / TRIAL_IMAGES for precision, seconds in times.items()}


@torch.inference_mode()
def _features(encoder: Encoder, batch: tuple[Tensor, ...], precision: str) -> Tensor:
    images, *sizes = batch
    if not len(images):
        return torch.empty(0, encoder.dim)
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
        images = images.to(encoder.device)
        features: Tensor = encoder(images, *sizes) if sizes else encoder.backbone(images)
        return encoder.checked(features.float().cpu())
