import math

import pytest
import timm
import torch
import torchvision

from mocokit.errors import UserError
from mocokit.model.backbones import create_backbone, feature_dim, freeze_patch_projection

OURS = {"resnet18_cifar": 512, "resnet34_cifar": 512, "resnet50_cifar": 2048, "resnet18_narrow": 128}


@pytest.mark.parametrize(("name", "dim"), OURS.items())
def test_cifar_resnets_keep_full_resolution_through_the_stem(name, dim):
    backbone = create_backbone(name, 3, 32)
    assert feature_dim(backbone) == dim
    with torch.no_grad():
        stem = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(torch.zeros(1, 3, 32, 32)))))
    assert stem.shape[2:] == (32, 32)
    assert name in timm.list_models()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_all_but_the_stem_has_torchvisions_names_and_shapes(name):
    ours = timm.create_model(f"{name}_cifar", num_classes=1000).state_dict()
    theirs = getattr(torchvision.models, name)().state_dict()
    assert {k: v.shape for k, v in ours.items() if k != "conv1.weight"} == {
        k: v.shape for k, v in theirs.items() if k != "conv1.weight"
    }
    assert ours["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_100", "vit_tiny_patch16_224", "vit_tiny_cifar"],
)
@pytest.mark.parametrize("channels", [1, 5])
def test_timm_models_take_any_number_of_channels(name, channels):
    backbone = create_backbone(name, channels, 64)
    with torch.no_grad():
        assert backbone(torch.zeros(2, channels, 64, 64)).shape == (2, feature_dim(backbone))


@pytest.mark.parametrize("name", ["resnet18_narrow", "resnet50", "regnetx_002", "vit_narrow"])
def test_residual_branches_start_at_zero_or_as_in_torchvision(name):
    """With the same random weights; what has no batch norm is the same."""
    made = []
    for zero in (True, False):
        torch.manual_seed(0)
        made.append(create_backbone(name, 3, 32, zero_init_last=zero).state_dict())
    differ = {key for key, tensor in made[0].items() if not torch.equal(tensor, made[1][key])}
    assert len(differ) == {"resnet18_narrow": 8, "resnet50": 16, "regnetx_002": 13, "vit_narrow": 0}[name]
    assert all(not made[0][key].any() and (made[1][key] == 1).all() for key in differ)


def test_unknown_names_suggest_known_ones():
    with pytest.raises(UserError, match=r"--backbone resnet18_cifra: .*did you mean resnet18_cifar"):
        create_backbone("resnet18_cifra", 3, 32)


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 8), ("convnext_atto", 16), ("inception_v3", 64)])
def test_a_model_that_cannot_take_the_image_size_says_so(name, size):
    with pytest.raises(
        UserError, match=rf"{name}: can't take 3-channel images of {size} pixels \(.*choose another"
    ) as caught:
        create_backbone(name, 3, size)
    assert "\n" not in str(caught.value)


def sine_cosine(row, column, dim):
    """MoCo v3's position of one patch: half the features for each axis, sines and then cosines."""
    rates = [10000 ** (-i / (dim // 4)) for i in range(dim // 4)]
    angles = [[axis * rate for rate in rates] for axis in (column, row)]
    return [f(a) for axis in angles for f in (math.sin, math.cos) for a in axis]


def test_vits_have_fixed_sine_cosine_positions():
    vit = create_backbone("vit_tiny_cifar", 3, 16)
    assert vit.pos_embed.shape == (1, 1 + 16, 192)
    assert not vit.pos_embed.requires_grad
    assert not vit.pos_embed[0, 0].any()  # the class token has none
    axes = [sine_cosine(1, 2, 192), sine_cosine(2, 1, 192)]  # which axis comes first changes nothing
    got = vit.pos_embed[0, 1 + 1 * 4 + 2].tolist()
    assert any(got == pytest.approx(expected, abs=1e-5) for expected in axes)
    assert len(vit.pos_embed[0, 1:].unique(dim=0)) == 16


def test_vits_start_as_in_moco_v3():
    """Uniform in +-sqrt(6 / (fan in + fan out)), query, key and value each a matrix of its own; biases zero."""
    vit = create_backbone("vit_tiny_cifar", 3, 16)
    bounds = {
        vit.patch_embed.proj: 6 / (3 * 4 * 4 + 192),
        vit.blocks[0].attn.qkv: 6 / (192 + 192),
        vit.blocks[0].mlp.fc1: 6 / (192 + 768),
    }
    for layer, square in bounds.items():
        assert float(layer.weight.abs().max()) == pytest.approx(math.sqrt(square), rel=0.01)
        assert not layer.bias.any()


def test_the_patch_projection_is_frozen_for_pretraining_only():
    vit = create_backbone("vit_tiny_cifar", 3, 16)
    assert vit.patch_embed.proj.weight.requires_grad
    freeze_patch_projection(vit)
    frozen = {name for name, p in vit.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    resnet = create_backbone("resnet18_narrow", 3, 16)
    freeze_patch_projection(resnet)
    assert all(p.requires_grad for p in resnet.parameters())


def test_swin_has_no_stochastic_depth():
    swin = create_backbone("swin_tiny_patch4_window7_224", 3, 64).train()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(swin(x), swin(x))
