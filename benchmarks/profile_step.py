"""Where the time of a training step goes on this machine: a profiler table of a few steps.

python benchmarks/profile_step.py [--backbone resnet18_narrow] [--image-size 32] [--batch-size 128] [--splits 8]
"""

import argparse
import time

import torch
from torch.profiler import ProfilerActivity, profile

from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.heads import create_head, create_predictor
from mocokit.model.moco import MoCo
from mocokit.model.norm import split_batch_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18_narrow")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    spec = EncoderSpec(arguments.backbone, arguments.image_size, 3, (0.5,) * 3, (0.25,) * 3)
    encoder = Encoder.create(spec)
    head, predictor = (
        create_head("mlp", encoder.dim, encoder.dim, 128),
        create_predictor("mlp", encoder.dim, 128),
    )
    backbone = split_batch_norm(encoder.backbone, arguments.splits)
    moco = MoCo(backbone, head, predictor, dim=128, K=1024, tau=0.1, symmetric=False)
    moco = moco.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(moco.encoder_q.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    x = x.contiguous(memory_format=torch.channels_last)
    ids = torch.arange(arguments.batch_size)

    def step() -> None:
        loss = moco(x, x, ids, torch.randperm(arguments.batch_size), 0.99).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    begun = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    seconds = (time.perf_counter() - begun) / arguments.steps
    print(f"{1000 * seconds:.0f} ms a step, {arguments.batch_size / seconds:.0f} images/s")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    print(
        profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=45)
    )


if __name__ == "__main__":
    main()
