"""Folded networks compute the same features, whatever the backbone."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from mocokit.model.backbones import create_backbone
from mocokit.model.conv import multiply_small
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.folding import folded
from mocokit.model.norm import split_batch_norm
from mocokit.model.residual import fuse_residual


def trained(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=generator))
            module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=generator) - 0.5)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "size", "left"),
    [
        ("resnet18_cifar", 32, 0),
        ("resnet18_narrow", 16, 0),
        ("resnet26d", 64, 0),
        ("efficientnet_b0", 64, 0),
        ("mobilenetv3_small_100", 64, 0),
        ("resnetv2_50d_gn", 64, 0),
        ("convnext_atto", 64, 0),
        ("vit_narrow", 32, 0),
    ],
)
def test_features_stay(name: str, size: int, left: int) -> None:
    network = trained(create_backbone(name, 3, size))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    example, other = torch.randn(2, 3, size, size), torch.randn(5, 3, size, size)
    fast = folded(network, example)
    assert norms(fast) == left
    if norms(network):
        assert fast is not network
    with torch.no_grad():
        expected = network(other)
        torch.testing.assert_close(fast(other), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_split_batch_norm_and_products_are_folded() -> None:
    """As a run on a CPU has them, for the checks in it."""
    network = split_batch_norm(create_backbone("resnet18_narrow", 3, 16), 4)
    network = trained(fuse_residual(multiply_small(network)))
    assert norms(folded(network, torch.randn(2, 3, 16, 16))) == 0


def test_the_mode_is_left_as_it_was() -> None:
    network = create_backbone("resnet18_narrow", 3, 16)
    network.train()
    folded(network, torch.randn(2, 3, 16, 16))
    assert network.training
    assert all(module.training for module in network.modules())


class Branched(nn.Module):
    """The convolution's output is also used beside its batch norm, which no fold may change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return (x + self.norm(x)).mean((2, 3))


class Shared(nn.Module):
    """One convolution, two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), BatchNormAct2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(self.first(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("kind", [Branched, Shared])
def test_what_would_change_is_left(kind: type[nn.Module]) -> None:
    network = trained(kind())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(network, x)(x), network(x))


def test_an_encoder_for_evaluation() -> None:
    encoder = Encoder.create(EncoderSpec("resnet18_narrow", 16, 3, (0.5,) * 3, (0.2,) * 3))
    trained(encoder)
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    fast = encoder.for_evaluation()
    assert norms(fast) == 0 < norms(encoder)
    assert fast.spec == encoder.spec
    torch.testing.assert_close(fast.embed(images), encoder.embed(images), rtol=1e-4, atol=1e-5)


def test_without_numbers_the_network_stays() -> None:
    network = create_backbone("resnet18_narrow", 3, 16)
    with torch.no_grad():
        network.bn1.weight.fill_(float("nan"))
    assert folded(network, torch.randn(2, 3, 16, 16)) is network
