"""How long a training step takes here, measured on a model that is then thrown away."""

import time
from dataclasses import replace

import torch

from mocokit import distributed
from mocokit.auto.view_sizes import view_sizes
from mocokit.config import PretrainConfig
from mocokit.console import progress
from mocokit.data.store import ImageSet
from mocokit.data.streaming import StreamingImages
from mocokit.model.encoder import EncoderSpec
from mocokit.training.clock import FIRST_STEPS
from mocokit.training.loop import Trainer, create_fabric
from mocokit.training.pretraining import Pretraining, pretraining_loader

TIMED_STEPS = 16  # at most, with views of each size


def step_times(
    config: PretrainConfig, spec: EncoderSpec, images: ImageSet | StreamingImages, seconds: float
) -> dict[int, float]:
    """Mean time of the run's training steps, by size of views.

    Args:
        config, spec, images: of the run to come.
        seconds: how long this may take, about, without first steps; one step is timed in any case with views of each
            size.
    """
    sizes = view_sizes(config.view_size, config.view_size_end)
    task = Pretraining(config, spec)
    loader = pretraining_loader(config, images)
    trainer = Trainer(task, create_fabric(config.device, config.precision))
    times: dict[int, float] = {}
    with progress("timing steps") as report:
        for size in sizes:
            report(len(times), len(sizes))
            task.config = replace(config, view_size=size, view_size_end=size)
            stopwatch = Stopwatch(config.device, seconds / len(sizes), config.cuda_graphs)
            trainer.fit(loader, trainer.step + TIMED_STEPS, stop=stopwatch)
            times[size] = stopwatch.mean
    return times


class Stopwatch:
    """Asked after each step whether to stop; times the steps in between."""

    def __init__(self, device: str, seconds: float, cuda_graphs: bool = False) -> None:
        self.first, self.seconds = FIRST_STEPS[cuda_graphs], seconds
        self.device = device
        self.times: list[float] = []
        self.clock: float | None = None

    def __call__(self, step: int) -> bool:
        if self.device != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if self.clock is not None:
            self.times.append(now - self.clock)
        self.clock = now
        # All processes stop at the same step.
        late = len(self.times) > self.first and sum(self.times[self.first :]) > self.seconds
        return distributed.any_rank(late)[0]

    @property
    def mean(self) -> float:
        """Seconds a step, of the second half of the steps."""
        settled = self.times[max(self.first, len(self.times) // 2) :]
        return sum(settled) / len(settled)
