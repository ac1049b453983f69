"""Backbones: any timm model that pools its features, and four ResNets for small images registered with timm."""

import difflib
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from mocokit.errors import UserError


class CifarResNet(ResNet):
    """ResNet whose stem is one 3x3 convolution of stride 1 without pooling (He et al. 2016, section 4.2).

    At full width (``stem_width`` 64) everything but ``conv1`` has the names and shapes of torchvision's ResNet.
    """

    def __init__(self, stem_width: int = 64, in_chans: int = 3, **kwargs: Any) -> None:
        # timm ties the width behind the stem to 64 unless the stem is a deep one, which is replaced here.
        deep_stem: dict[str, Any] = {"stem_type": "deep", "stem_width": stem_width // 2, "in_chans": in_chans}
        super().__init__(**deep_stem, **kwargs)
        conv1 = nn.Conv2d(in_chans, stem_width, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")
        self.conv1 = conv1  # type: ignore[assignment]  # timm declares the deep stem's type
        self.maxpool = nn.Identity()  # type: ignore[assignment]


_SMALL = {"input_size": (3, 32, 32), "pool_size": (4, 4), "first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs(
    dict.fromkeys(("resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "resnet18_narrow"), _SMALL)
)


def _create(name: str, pretrained: bool, block: Any, layers: tuple[int, ...], **kwargs: Any) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        CifarResNet, name, pretrained, block=block, layers=layers, **kwargs
    )
    return model


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the CIFAR stem: 11.2 M parameters, 0.56 GMAC at 32 x 32, 512 features."""
    return _create("resnet18_cifar", pretrained, BasicBlock, (2, 2, 2, 2), **kwargs)


@register_model
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with the CIFAR stem: 21.3 M parameters, 1.16 GMAC at 32 x 32, 512 features."""
    return _create("resnet34_cifar", pretrained, BasicBlock, (3, 4, 6, 3), **kwargs)


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with the CIFAR stem: 23.5 M parameters, 1.30 GMAC at 32 x 32, 2048 features."""
    return _create("resnet50_cifar", pretrained, Bottleneck, (3, 4, 6, 3), **kwargs)


@register_model
def resnet18_narrow(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the CIFAR stem at a quarter of the width: 0.7 M parameters, 128 features."""
    sizes = {"stem_width": 16, "channels": (16, 32, 64, 128)}
    return _create("resnet18_narrow", pretrained, BasicBlock, (2, 2, 2, 2), **sizes, **kwargs)


def create_backbone(name: str, channels: int, image_size: int) -> nn.Module:
    """Build a randomly initialised backbone that maps images [B, channels, S, S] to pooled features [B, D].

    Raises:
        UserError: timm has no such model, or it can't take images of this size.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise UserError(f"--backbone {name}: timm has no such model; {hint}")
    try:
        backbone: nn.Module = timm.create_model(name, num_classes=0, in_chans=channels)
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(2, channels, image_size, image_size))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--backbone {name}: can't take {channels}-channel images of {image_size} pixels ({reason}); "
            f"choose another --backbone or --image-size"
        ) from None
    if features.ndim != 2:
        raise UserError(f"--backbone {name}: gives no pooled features (shape {tuple(features.shape)})")
    return backbone.train()


def feature_dim(backbone: nn.Module) -> int:
    """Length D of a backbone's pooled features."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
