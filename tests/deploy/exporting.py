"""Encoders and real photographs to test exports with, and a Python without mocokit."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from torch import nn

from mocokit.model.encoder import Encoder, EncoderSpec

CLASSES = ("cat", "dog", "newt")
PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
_BLOCKER = """
import sys
class Finder:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {blocked!r}:
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Finder, sys.meta_path)
"""


def make_encoder(
    backbone: str, size: int, channels: int = 3, classes: tuple[str, ...] = (), crop: float | None = None
) -> Encoder:
    """An encoder whose every weight and running statistic is its own: forgetting one shows. With ``crop`` it is one
    that timm trained, whose images are resized by a cubic."""
    spec = EncoderSpec(backbone, size, channels, (0.48, 0.45, 0.4)[:channels], (0.22, 0.24, 0.27)[:channels])
    if crop is not None:
        spec = dataclasses.replace(spec, crop=crop, interpolation="bicubic")
    encoder = Encoder.create(spec)
    draw = torch.Generator().manual_seed(0)
    for name, tensor in encoder.backbone.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=draw)
            tensor.add_(noise if name.endswith("running_var") else (noise - 0.5) * 0.1)
    if classes:
        encoder.classifier, encoder.classes = nn.Linear(encoder.dim, len(classes)), classes
        with torch.no_grad():
            encoder.classifier.weight.copy_(torch.randn(encoder.classifier.weight.shape, generator=draw))
            encoder.classifier.bias.copy_(torch.randn(len(classes), generator=draw))
    return encoder.eval()


def photographs(height: int, width: int, channels: int = 3, count: int = 6) -> np.ndarray:
    """Pieces of two photographs: uint8 [count, height, width, channels]."""
    pieces = []
    for i in range(count):
        image = Image.open(PHOTOGRAPHS[i % 2]).convert("L" if channels == 1 else "RGB")
        box = (40 * i, 20 * i, 40 * i + 300, 20 * i + 250)
        pieces.append(np.asarray(image.resize((width, height), box=box)).reshape(height, width, channels))
    return np.stack(pieces)


def without(blocked: tuple[str, ...], code: str, folder: Path) -> str:
    """What ``code`` prints in a fresh Python that stands in ``folder`` and does not find the blocked packages."""
    result = subprocess.run(
        [sys.executable, "-c", _BLOCKER.format(blocked=set(blocked)) + code],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
