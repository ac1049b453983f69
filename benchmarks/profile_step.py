"""Where the time of a training step goes on this machine: a profiler table of a few steps.

python benchmarks/profile_step.py [--backbone resnet18_narrow] [--batch-size 128] [--device cuda] [--precision bf16]
"""

import argparse
import time

import torch
from torch.profiler import ProfilerActivity, profile

from mocokit.model.conv import multiply_small
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.heads import create_head, create_predictor
from mocokit.model.moco import MoCoV2
from mocokit.model.norm import split_batch_norm
from mocokit.model.residual import fuse_residual
from mocokit.training.compilation import compile_encoders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18_narrow")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="as mocokit pretrain --compile")
    parser.add_argument("--cuda-graphs", action="store_true", help="as its --cuda-graphs; needs --compile")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    arguments = parser.parse_args()
    if arguments.cuda_graphs and not arguments.compile:
        parser.error("--cuda-graphs needs --compile")
    device = arguments.device
    spec = EncoderSpec(arguments.backbone, arguments.image_size, 3, (0.5,) * 3, (0.25,) * 3)
    encoder = Encoder.create(spec)
    head, predictor = (create_head("mlp", encoder.dim, encoder.dim, 128), create_predictor("mlp", encoder.dim, 128))
    backbone = split_batch_norm(encoder.backbone, arguments.splits)
    if device == "cpu":
        fuse_residual(multiply_small(backbone))
    moco = MoCoV2(backbone, head, predictor, dim=128, K=1024, tau=0.1, symmetric=False)
    moco = moco.to(device, memory_format=torch.channels_last)
    if arguments.compile:
        compile_encoders(moco, arguments.cuda_graphs)
    optimizer = torch.optim.SGD(moco.encoder_q.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    ids = torch.arange(arguments.batch_size, device=device)

    def step() -> None:
        shuffle = torch.randperm(arguments.batch_size)
        bf16 = arguments.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = moco(x, x, ids, shuffle, 0.99).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def settled() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(3):  # compilers, kernels and the allocator settle
        step()
    begun = settled()
    for _ in range(arguments.steps):
        step()
    seconds = (settled() - begun) / arguments.steps
    print(f"{1000 * seconds:.1f} ms a step, {arguments.batch_size / seconds:.0f} images/s")
    if arguments.cuda_graphs:
        skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
        print(f"encoders of which torch made no CUDA graph: {skipped}")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        step()
        settled()
    order = f"self_{device}_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=22, max_name_column_width=45))


if __name__ == "__main__":
    main()
