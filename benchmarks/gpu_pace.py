"""What a machine can do at most in the units of a training step, and what the loop makes of it.

python benchmarks/gpu_pace.py OUT.csv [--device cuda] [--batch-size 512] [--steps 200] [--warmup 20]

Ceilings: matrix product, convolution, copies, the launch of a kernel. The bare network: query forward and backward and
key forward of ResNet-18 on random tensors. The loop: views, loss, queue, momentum and optimizer as `mocokit pretrain`
does them on CIFAR-10 ($MOCOKIT_CIFAR10). Each row is written when it is there.
"""

import argparse
import csv
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from speed_common import settled

from mocokit.auto.defaults import Facts, defaults
from mocokit.data.loader import create_loader
from mocokit.data.store import open_store
from mocokit.machine import computes_in_bf16
from mocokit.model.backbones import create_backbone
from mocokit.model.encoder import encoder_spec
from mocokit.recipes import load_recipe
from mocokit.training.compilation import forget_cuda_graphs
from mocokit.training.loop import Trainer, create_fabric
from mocokit.training.pretraining import Pretraining

GFLOP_IMAGE = 4 * 2 * 0.557  # ResNet-18, CIFAR stem: query forward and backward (1 + 2), key forward (1), 2 a MAC
EAGER = "as it is"
MODES = {"cuda": (EAGER, "default", "reduce-overhead"), "cpu": (EAGER,)}  # of torch.compile; the last: CUDA graphs
WAYS = {"cuda": ("", "compile", "compile cuda_graphs"), "cpu": ("",)}  # options of the loop; of fast-cifar10 the last


class Paces:
    """The rows, written as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("what,value,unit\n")

    def add(self, what: str, value: float, unit: str) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow((what, f"{value:.4g}", unit))
        print(f"{what:<64} {value:>10.4g} {unit}", flush=True)


def seconds(call: Callable[[], object], device: str, repeats: int, warmup: int = 5) -> float:
    """Of one call, the mean of several."""
    for _ in range(warmup):
        call()
    begun = settled(device)
    for _ in range(repeats):
        call()
    return (settled(device) - begun) / repeats


def ceilings(paces: Paces, device: str, side: int, batch: int, repeats: int) -> None:
    """Arithmetic and copies."""
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    took = seconds(lambda: a @ b, device, repeats)
    paces.add(f"matrix product, bfloat16, {side}", 2 * side**3 / took / 1e12, "TFLOP/s")
    x, w = torch.randn(batch, 128, 32, 32), torch.randn(128, 128, 3, 3)
    x, w = (t.to(device, torch.bfloat16).contiguous(memory_format=torch.channels_last) for t in (x, w))
    flop = 2 * batch * 32 * 32 * 128 * 128 * 9
    took = seconds(lambda: F.conv2d(x, w, padding=1), device, repeats)
    paces.add("convolution 3x3, 128 channels, bfloat16", flop / took / 1e12, "TFLOP/s")
    if device == "cuda":
        big = torch.empty(2**30, dtype=torch.uint8, device=device)
        took = seconds(big.clone, device, repeats)
        paces.add("copy on the device, read + write", 2 * big.numel() / took / 1e9, "GB/s")
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        took = seconds(lambda: host.to(device), device, repeats)
        paces.add("copy to the device, pinned", host.numel() / took / 1e9, "GB/s")
        tiny = torch.zeros(1, device=device)
        paces.add("launch of one kernel", 1e6 * seconds(lambda: tiny.add_(1), device, 2000), "us")


def bare(device: str, batch: int, mode: str, repeats: int) -> float:
    """Images a second of the bare network: bfloat16, channels-last, random tensors."""
    torch._dynamo.reset()
    model = create_backbone("resnet18_cifar", 3, 32).to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    network = model if mode == EAGER else torch.compile(model, mode=mode)

    def call() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = network(x).float().square().mean()
            with torch.no_grad():
                network(x)
        model.zero_grad()
        loss.backward()

    return batch / seconds(call, device, repeats)


def loops(paces: Paces, device: str, batch: int, steps: int, warmup: int) -> None:
    """Images a second of the loop of the recipes, in bfloat16, as it is and compiled."""
    store = open_store(os.environ["MOCOKIT_CIFAR10"], image_size=32)
    images = store.splits["train"]
    facts = Facts(
        name="cifar10", images=len(images), image_size=32, longest=32, channels=3, device=device,
        bf16=computes_in_bf16(device), cpus=os.cpu_count() or 1,
    )  # fmt: skip
    for recipe in ("moco-v2-cifar10", "fast-cifar10"):
        given = {"data": "x", "recipe": recipe, "precision": "bf16", "batch_size": batch, "device": device}
        base = defaults(given, facts, load_recipe(recipe)).config
        for way in WAYS[device] if recipe == "moco-v2-cifar10" else WAYS[device][-1:]:
            torch._dynamo.reset()
            config = dataclasses.replace(base, **dict.fromkeys(way.split(), True))
            loader = create_loader(images, batch_size=batch, seed=0, device=torch.device(device), workers=4)
            trainer = Trainer(Pretraining(config, encoder_spec(store, config)), create_fabric(device, "bf16"))
            begun = settled(device)
            trainer.fit(loader, 1)
            first = settled(device) - begun
            trainer.fit(loader, warmup)
            begun = settled(device)
            trainer.fit(loader, warmup + steps)
            pace = batch * steps / (settled(device) - begun)
            name = f"loop of {recipe}, batch {batch}" + "".join(f", {word}" for word in way.split())
            paces.add(name, pace, "images/s")
            paces.add(f"{name}: first step", first, "s")
            if "cuda_graphs" in way:
                del trainer
                forget_cuda_graphs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20, help="steps before, most of them compilers' and allocators'")
    options = parser.parse_args()
    device, batch, steps = options.device, options.batch_size, options.steps
    paces = Paces(options.out)
    ceilings(paces, device, 8192 if device == "cuda" else 512, batch, 20 if device == "cuda" else 2)
    for mode in MODES[device]:
        name = f"bare ResNet-18 step, batch {batch}" + ("" if mode == EAGER else f", compiled, {mode}")
        pace = bare(device, batch, mode, max(2, steps // 4))
        paces.add(name, pace, "images/s")
        paces.add(f"{name}: arithmetic", pace * GFLOP_IMAGE / 1e3, "TFLOP/s")
    loops(paces, device, batch, steps, options.warmup)


if __name__ == "__main__":
    main()
