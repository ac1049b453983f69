"""How throughput scales with GPUs, modelled: what a step computes, sends and reads on N of them.

    python benchmarks/scaling.py [--step-ms 110] [--network 50] [--latency 30] ...

Parameters and messages are counted on the real model and decoding is timed on one core of this machine; the
step time and the speeds of the network are assumptions that the options state. See docs/scaling.md.
"""

import argparse
import io
import math
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mocokit.auto.defaults import Facts, defaults
from mocokit.config import PretrainConfig
from mocokit.data.decode import decode
from mocokit.data.pixels import stored_side
from mocokit.model.encoder import EncoderSpec
from mocokit.recipes import load_recipe
from mocokit.training.pretraining import Pretraining

FLOAT, IDENTITY = 4, 8  # bytes of a float32 and of an image's number
BACKWARD = 0.5  # share of a step of MoCo in which gradients become known: two of the four passes
REPEATS = 20


@dataclass(frozen=True)
class Step:
    """What one process has to do in a step of ``images`` images: bytes, and messages that wait for each other."""

    images: int
    gradient_bytes: int
    shuffle_bytes: int
    key_bytes: int
    messages: int


def measured_step(recipe: str, images: int, classes: type[torch.nn.Module]) -> Step:
    """Counted on the model of ``recipe`` on images of 224 pixels."""
    facts = Facts("images", 1_281_167, 224, 448, 3, "cuda", True, 16)
    config: PretrainConfig = defaults(
        {"data": "images", "recipe": recipe, "device": "cpu"}, facts, load_recipe(recipe)
    ).config
    module = Pretraining(config, EncoderSpec(config.backbone, 224, 3, (0.5,) * 3, (0.2,) * 3, None))
    learned = sum(p.numel() for p in module.moco.parameters() if p.requires_grad)
    passes = 1 + config.symmetric
    shuffled = images * 3 * 224 * 224 * FLOAT * passes if config.bn_splits > 1 else 0
    keys = images * (config.head_dim * FLOAT * passes + IDENTITY)
    norms = sum(isinstance(m, classes) for m in module.moco.modules()) if config.bn_splits == 1 else 0
    learners = sum(isinstance(m, classes) for p in (module.moco.encoder_q, module.moco.predictor) for m in p.modules())
    # Synchronised batch norm: one message forward in both encoders, one backward in the learned one.
    messages = passes * (norms + (learners if norms else 0)) + passes + 1
    return Step(images, learned * FLOAT, shuffled, keys, messages)


def decode_seconds() -> float:
    """Of a JPEG of 500 x 375 pixels and about 110 kB, shrunk to what is kept for 224: median, one core."""
    noise = np.random.default_rng(0).normal(128, 40, (48, 64, 3)).clip(0, 255).astype(np.uint8)
    grain = np.random.default_rng(1).normal(0, 14, (375, 500, 3))
    smooth = np.asarray(Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC), dtype=float)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    content, times = buffer.getvalue(), []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        decode(content, stored_side(224))
        times.append(time.perf_counter() - begun)
    print(f"decoding a JPEG of {len(content) / 1000:.0f} kB: {1000 * statistics.median(times):.1f} ms (n = {REPEATS})")
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-ms", type=float, default=110, help="a step of one GPU alone (assumed)")
    parser.add_argument("--images", type=int, default=256, help="of the batch on each GPU")
    parser.add_argument("--node", type=float, default=300, help="GB/s of a GPU within its machine of 8")
    parser.add_argument("--network", type=float, default=50, help="GB/s of a GPU between machines")
    parser.add_argument("--latency", type=float, default=30, help="microseconds of a small message, a hop")
    parser.add_argument("--file-kb", type=float, default=110, help="size of an image file")
    args = parser.parse_args()
    decoding = decode_seconds()
    norms = torch.nn.modules.batchnorm._BatchNorm
    for recipe in ("moco-v2", "moco-v3-resnet50"):
        step = measured_step(recipe, args.images, norms)
        alone = args.step_ms / 1000 * (2 if "v3" in recipe else 1)
        print(
            f"\n{recipe}: gradients {step.gradient_bytes / 1e6:.0f} MB, "
            f"shuffled images {step.shuffle_bytes / 1e6:.0f} MB, {step.messages} messages in turn; "
            f"assumed {1000 * alone:.0f} ms for {step.images} images"
        )
        print(
            "| GPUs | images/s | efficiency | gradients | of it waited for | shuffle | keys | latency "
            "| read | cores a GPU |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for count in (1, 8, 64, 512):
            print(row(step, alone, count, args, decoding))


def row(step: Step, alone: float, count: int, args: argparse.Namespace, decoding: float) -> str:
    """One line of the table, for ``count`` GPUs."""
    speed = 1e9 * (args.node if count <= 8 else args.network)
    share = (count - 1) / count
    gradients = 2 * share * step.gradient_bytes / speed
    waited = max(0.0, gradients - BACKWARD * alone)
    shuffle = share * step.shuffle_bytes / speed
    keys = (count - 1) * step.key_bytes / speed
    latency = step.messages * args.latency * 1e-6 * math.log2(count)
    seconds = alone + waited + shuffle + keys + latency
    rate = count * step.images / seconds
    return (
        f"| {count} | {rate:,.0f} | {alone / seconds:.0%} | {1000 * gradients:.1f} ms | {1000 * waited:.1f} ms | "
        f"{1000 * shuffle:.1f} ms | {1000 * keys:.1f} ms | {1000 * latency:.1f} ms | "
        f"{rate * args.file_kb / 1e6:.1f} GB/s | {rate / count * decoding:.0f} |"
    )


if __name__ == "__main__":
    main()
