"""What this GPU can do at most, in the units that a training step is made of: python benchmarks/ceilings.py OUT.csv"""

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from mocokit.model.backbones import create_backbone

GFLOP_IMAGE = 4 * 2 * 0.557  # ResNet-18, CIFAR stem: query forward and backward (1 + 2), key forward (1), 2 a MAC
REPEATS = 20
EAGER = "as it is"
MODES = (EAGER, "default", "reduce-overhead")  # of torch.compile; the last one takes CUDA graphs


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Of one call, in the middle of several."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / repeats


def bare(batch: int, mode: str) -> float:
    """Images a second of query forward and backward and key forward: bfloat16, channels-last, random tensors."""
    torch._dynamo.reset()  # else a second batch size makes kernels for any
    model = create_backbone("resnet18_cifar", 3, 32).cuda().to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    network = model if mode == EAGER else torch.compile(model, mode=mode)

    def call() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(x).float().square().mean()
            with torch.no_grad():
                network(x)
        model.zero_grad()
        loss.backward()

    return batch / seconds(call)


def main(out: str) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("ceilings.py needs a CUDA device")
    rows: list[tuple[str, float, str]] = []
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    rows.append(("matrix product, bfloat16, 8192", 2 * 8192**3 / seconds(lambda: a @ b) / 1e12, "TFLOP/s"))
    x, w = torch.randn(512, 128, 32, 32), torch.randn(128, 128, 3, 3)
    x, w = (t.cuda().bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, w))
    flop = 2 * 512 * 32 * 32 * 128 * 128 * 9
    rows.append(("convolution 3x3, 128 channels", flop / seconds(lambda: F.conv2d(x, w, padding=1)) / 1e12, "TFLOP/s"))
    big = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    rows.append(("copy on the device, read + write", 2 * big.numel() / seconds(big.clone) / 1e9, "GB/s"))
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    rows.append(("copy to the device, pinned", host.numel() / seconds(lambda: host.cuda()) / 1e9, "GB/s"))
    tiny = torch.zeros(1, device="cuda")
    rows.append(("launch of one kernel", 1e6 * seconds(lambda: tiny.add_(1), 2000), "us"))
    for batch in (256, 512):
        for mode in MODES:
            pace = bare(batch, mode)
            compiled = "" if mode == EAGER else f", compiled, {mode}"
            name = f"bare ResNet-18 step, batch {batch}{compiled}"
            rows.append((name, pace, "images/s"))
            rows.append((f"{name}: epoch of 50,000", 50_000 / pace, "s"))
            rows.append((f"{name}: arithmetic", pace * GFLOP_IMAGE / 1e3, "TFLOP/s"))
    rows = [(name, float(f"{value:.4g}"), unit) for name, value, unit in rows]
    with Path(out).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("ceiling", "value", "unit"), *rows])
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print("\n".join(f"{name:<60} {value:>10} {unit}" for name, value, unit in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
