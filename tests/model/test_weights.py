"""Weights under others' names fit, whole and in place, or are refused by name and shape."""

import lightly.models
import pytest
import timm
import torch
import torchvision
from torch import nn

from mocokit.errors import UserError
from mocokit.model import weights
from mocokit.model.backbones import create_backbone
from mocokit.model.weights import fit_weights, flat_tensors, match

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def shaken(module: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics of batch norm that are its own: one that is forgotten shows."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=draw)
            tensor.add_(noise if name.endswith("running_var") else (noise - 0.5) * 0.1)
    return module.eval()


def filled(name: str, found: dict[str, torch.Tensor], size: int = 64, channels: int = 3) -> nn.Module:
    backbone = create_backbone(name, channels, size)
    fit_weights(backbone, match(found, backbone, name).weights, name)
    return backbone.eval()


def renamed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@torch.no_grad()
def same(found: nn.Module, expected: nn.Module, images: torch.Tensor = IMAGES) -> bool:
    return torch.allclose(found(images), expected(images).flatten(1), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def resnet():
    """torchvision's ResNet-18 without its classifier."""
    network = shaken(torchvision.models.resnet18(weights=None))
    network.fc = nn.Identity()
    return network


def test_timm():
    network = shaken(timm.create_model("resnet26"))
    state = network.state_dict()
    matched = match(state, create_backbone("resnet26", 3, 64), "resnet26")
    assert matched.describe().endswith("; left out: 2, the first is fc.weight")
    network.fc = nn.Identity()
    assert same(filled("resnet26", state), network)


def test_torchvision(resnet):
    assert same(filled("resnet18", torchvision_state(resnet)), resnet)


def torchvision_state(resnet):
    return resnet.state_dict() | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        ("module.encoder_q.", "module.encoder_k."),  # MoCo v1 and v2
        ("module.base_encoder.", "module.momentum_encoder."),  # MoCo v3
        ("backbone.", "momentum_backbone."),  # solo-learn
        ("teacher.backbone.", "student.module.backbone."),  # DINO
        ("model_ema.", "model."),  # an average over the training
        ("", "momentum_encoder."),
        ("online_encoder.net.", "target_encoder.net."),  # BYOL
    ],
)
def test_of_two_networks_the_right_one_is_taken(resnet, ours, others):
    """In either order, below whatever a checkpoint puts around them."""
    own = renamed(torchvision_state(resnet), ours)
    other = renamed({name: tensor.float() + 1 for name, tensor in torchvision_state(resnet).items()}, others)
    for first, second in ((own, other), (other, own)):
        found = renamed(first | second, "state_dict.") | {"optimizer.state.0.exp_avg": torch.ones(3)}
        found["state_dict.module.queue"] = torch.ones(128, 16)
        assert same(filled("resnet18", found), resnet)
        matched = match(found, create_backbone("resnet18", 3, 64), "resnet18")
        assert matched.prefix == f"state_dict.{ours}"
        assert len(matched.left) == 2 + len(other) + 2  # its classifier; the other network; optimizer and queue


def test_of_equal_prefixes_the_first_by_the_alphabet_is_taken(resnet, monkeypatch):
    """Whatever the order of a set is, which in each process is another."""
    state = resnet.state_dict()
    found, prefixes = {**renamed(state, "two."), **renamed(state, "one.")}, weights._prefixes
    for reverse in (False, True):
        monkeypatch.setattr(weights, "_prefixes", lambda *of, r=reverse: sorted(prefixes(*of), reverse=r))
        assert match(found, create_backbone("resnet18", 3, 64), "resnet18").prefix == "one."


def test_lightlys_sequence_of_parts(resnet):
    """As in the examples of lightly: all children of a ResNet but the classifier, in a row."""
    row = nn.Sequential(*list(resnet.children())[:-1])
    assert same(filled("resnet18", renamed(row.state_dict(), "backbone.")), resnet)
    generated = shaken(lightly.models.ResNetGenerator("resnet-18", num_splits=1))
    row = nn.Sequential(*list(generated.children())[:-1], nn.AdaptiveAvgPool2d(1)).eval()
    state = renamed(row.state_dict(), "state_dict.backbone.")
    found = filled("resnet18_cifar", state, size=32)
    with_relu = nn.Sequential(*row[:2], nn.ReLU(), *row[2:])  # lightly's own forward pass has it, the row has not
    assert same(found, with_relu, IMAGES[..., :32, :32])
    assert (
        "without the first ReLU" in match(state, create_backbone("resnet18_cifar", 3, 32), "resnet18_cifar").describe()
    )


def test_torchvisions_transformers():
    network = shaken(torchvision.models.vit_b_32(weights=None, image_size=64))
    found = filled("vit_base_patch32_224", network.state_dict())
    network.heads = nn.Identity()
    assert same(found, network)


def test_other_channels_and_sizes_are_adapted_as_timm_does():
    """Of a gray picture the gray network sees what the colour network sees of three equal channels."""
    colour = shaken(timm.create_model("resnet18", num_classes=0))
    gray = create_backbone("resnet18", 1, 64)
    notes = fit_weights(gray, colour.state_dict(), "resnet18")
    assert notes == ["first convolution of 3 channels adapted to 1"]
    picture = IMAGES[:, :1]
    with torch.no_grad():
        expected = colour(picture.expand(-1, 3, -1, -1))
        torch.testing.assert_close(gray.eval()(picture), expected, rtol=1e-4, atol=1e-5)

    small = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64))
    large = create_backbone("vit_tiny_patch16_224", 3, 96)
    assert fit_weights(large, small.state_dict(), "vit_tiny") == ["17 positions resampled to 37"]
    again = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    expected = timm.layers.resample_abs_pos_embed(small.pos_embed, [6, 6])
    torch.testing.assert_close(large.pos_embed, expected)
    assert again.pos_embed.shape == large.pos_embed.shape


def test_what_does_not_fit_is_refused_by_name_and_shape(resnet):
    state = torchvision_state(resnet)
    for name, why in {
        "resnet34": "has no layer1.2.conv1.weight, layer1.2.bn1.weight, layer1.2.bn1.bias and 77 more of resnet34",
        "resnet50": "has no layer1.0.conv3.weight",
        "vit_tiny_patch16_224": "has no weights of vit_tiny_patch16_224; its own are conv1.weight, bn1.weight",
    }.items():
        with pytest.raises(UserError, match=f"^{why}"):
            match(state, create_backbone(name, 3, 64), name)
    larger = timm.create_model("resnet34").state_dict()
    why = r"has layer1.2.conv1.weight, layer1.2.bn1.weight, .* for which resnet18 has no place; name its own --backbone"
    with pytest.raises(UserError, match=why):
        match(larger, create_backbone("resnet18", 3, 64), "resnet18")

    def refused(backbone, weights, why):
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        with pytest.raises(UserError, match=f"^{why}"):
            fit_weights(backbone, weights, "net")
        assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())

    backbone = create_backbone("resnet18", 3, 64)
    own = dict(backbone.state_dict())
    wide = {**own, "layer2.0.conv1.weight": torch.zeros(128, 64, 5, 5)}
    refused(backbone, wide, "layer2.0.conv1.weight is 128 x 64 x 5 x 5 where net has 128 x 64 x 3 x 3")
    refused(backbone, {**own, "conv1.weight": torch.zeros(64, 2, 7, 7)}, "conv1.weight is 64 x 2 x 7 x 7 where")
    refused(backbone, {**own, "bn1.bias": torch.full((64,), float("nan"))}, "bn1.bias holds values that are infinite")


def test_half_precision_is_taken(resnet):
    half = {name: tensor.half() for name, tensor in torchvision_state(resnet).items() if tensor.is_floating_point()}
    backbone = filled("resnet18", half)
    assert {tensor.dtype for tensor in backbone.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(backbone(IMAGES), resnet(IMAGES), rtol=0.02, atol=0.02)


def test_flat_tensors():
    one, two = torch.ones(1), torch.ones(2)
    nested = {"state_dict": {"a.b": one, "epoch": 3}, "optimizer": {"state": {0: {"exp_avg": two}}, "groups": [one]}}
    assert dict(flat_tensors(nested)) == {"state_dict.a.b": one, "optimizer.state.0.exp_avg": two}
