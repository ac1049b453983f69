"""Encoders with random weights, and images of many sizes for them."""

import torch

from mocokit.model.encoder import Encoder, EncoderSpec

ORIGIN = {"seed": 3, "recipe": "auto", "data_fingerprint": "f"}
SIZES = [(24, 24), (24, 40), (31, 9), (5, 5), (64, 64), (100, 30), (24, 24)]


def spec(channels: int, intensity_range: tuple[float, float] | None = None) -> EncoderSpec:
    mean, std = (0.3, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    return EncoderSpec("resnet18_narrow", 24, channels, mean, std, intensity_range)


def random_encoder(channels: int) -> Encoder:
    return Encoder.create(spec(channels)).eval()


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
