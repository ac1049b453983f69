"""What every workload of `speed.py` is given, and how time is taken in it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Result = dict[str, Any]  # "value" in the unit of the row, and whatever else is worth a look


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a workload, and where its files are."""

    data: str  # folder with train/ and test/ class folders
    scratch: str  # for runs, logs and caches
    started: float  # time.time() when the process was asked for
    device: str
    precision: str | None  # None: left to the program
    backbone: str  # of mocokit; the peer takes the same network from its own library
    encoder: str  # frozen encoder of the rows that evaluate
    images: int
    queries: int
    image_size: int
    batch_size: int
    steps: int
    warmup: int
    workers: int
    probe_epochs: int
    cached: bool = False
    untried: bool = False  # without what mocokit does by itself before a run: trials, and a check of step 0
    fork: bool = True  # False keeps everything in this process

    @property
    def train(self) -> Path:
        """The images to learn from."""
        return Path(self.data) / "train"

    @property
    def test(self) -> Path:
        """The images to ask for."""
        return Path(self.data) / "test"


class Stop(Exception):
    """Enough was measured."""


class StepClock:
    """Times training steps: when the first began, and the pace after the warm-up."""

    def __init__(self, s: Settings) -> None:
        self.s, self.done, self.first, self.begun, self.ended = s, 0, 0.0, 0.0, 0.0

    def on_start(self) -> None:
        """A step begins: its batch is at hand; raises `Stop` if no step is to be timed."""
        if not self.done:
            self.first = time.time()
        if not self.s.steps:  # only the first step's beginning is asked for
            raise Stop

    def on_end(self) -> None:
        """A step is over; raises `Stop` after the last one that counts."""
        self.done += 1
        if self.done == self.s.warmup:
            self.begun = settled(self.s.device)
        if self.done == self.s.warmup + self.s.steps:
            self.ended = settled(self.s.device)
            raise Stop

    def pace(self) -> float:
        """Images a second."""
        return self.s.steps * self.s.batch_size / (self.ended - self.begun)


def settled(device: str) -> float:
    """The time, once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(call: Any, items: int, s: Settings) -> float:
    """Items a second of ``call``, which does ``items``: ``steps`` calls after ``warmup``."""
    for _ in range(s.warmup):
        call()
    begun = settled(s.device)
    for _ in range(s.steps):
        call()
    return items * s.steps / (settled(s.device) - begun)


def photographs(s: Settings) -> torch.Tensor:
    """A batch of decoded images of the training set, uint8 [B, 3, S, S]."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    files = sorted(s.train.rglob("*.*"))
    files = [files[i * len(files) // s.batch_size] for i in range(s.batch_size)]
    size = (s.image_size, s.image_size)
    return torch.stack([pil_to_tensor(Image.open(file).convert("RGB").resize(size)) for file in files])


def clusters(s: Settings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features in ten overlapping classes: bank [N, 512], its labels, queries [M, 512], their labels."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(10, 512, generator=generator)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, 10, (count,), generator=generator)
        noise = torch.randn(count, 512, generator=generator)
        features = torch.nn.functional.normalize(0.15 * centers[labels] + noise, dim=1)
        return features.to(s.device), labels.to(s.device)

    return *draw(s.images), *draw(s.queries)
