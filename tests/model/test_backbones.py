import pytest
import timm
import torch
import torchvision

from mocokit.errors import UserError
from mocokit.model.backbones import create_backbone, feature_dim

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


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_100"])
@pytest.mark.parametrize("channels", [1, 5])
def test_timm_models_take_any_number_of_channels(name, channels):
    backbone = create_backbone(name, channels, 64)
    with torch.no_grad():
        assert backbone(torch.zeros(2, channels, 64, 64)).shape == (2, feature_dim(backbone))


def test_unknown_names_suggest_known_ones():
    with pytest.raises(UserError, match=r"--backbone resnet18_cifra: .*did you mean resnet18_cifar"):
        create_backbone("resnet18_cifra", 3, 32)


def test_a_model_that_cannot_take_the_image_size_says_so():
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224: can't take 3-channel images of 32 pixels"):
        create_backbone("vit_tiny_patch16_224", 3, 32)
