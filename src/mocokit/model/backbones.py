"""Backbones: any timm model that pools its features, and ResNets and ViTs for small images registered with timm."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers import DropPath, build_sincos2d_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mocokit.errors import UserError, reason_of


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


_NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # 11.2 M parameters, 0.56 GMAC at 32 x 32, 512 features
    "resnet18_cifar": (CifarResNet, {"block": BasicBlock, "layers": (2, 2, 2, 2)}),
    # 21.3 M parameters, 1.16 GMAC at 32 x 32, 512 features
    "resnet34_cifar": (CifarResNet, {"block": BasicBlock, "layers": (3, 4, 6, 3)}),
    # 23.5 M parameters, 1.30 GMAC at 32 x 32, 2048 features
    "resnet50_cifar": (CifarResNet, {"block": Bottleneck, "layers": (3, 4, 6, 3)}),
    # a quarter of the width: 0.7 M parameters, 128 features
    "resnet18_narrow": (
        CifarResNet,
        {"block": BasicBlock, "layers": (2, 2, 2, 2), "stem_width": 16, "channels": (16, 32, 64, 128)},
    ),
    # 5.4 M parameters, 65 tokens at 32 x 32, 192 features
    "vit_tiny_cifar": (VisionTransformer, {"patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}),
    # 1.2 M parameters, 65 tokens at 32 x 32, 128 features
    "vit_narrow": (VisionTransformer, {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}),
}
_PRETRAINED_CFGS: dict[type[nn.Module], dict[str, Any]] = {
    CifarResNet: {"pool_size": (4, 4), "first_conv": "conv1", "classifier": "fc"},
    VisionTransformer: {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"},
}
default_cfgs = generate_default_cfgs(
    {name: {"input_size": (3, 32, 32), **_PRETRAINED_CFGS[network]} for name, (network, _) in _NETWORKS.items()}
)


def _register(name: str, network: type[nn.Module], sizes: dict[str, Any]) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(network, name, pretrained, **sizes | kwargs)
        return model

    create.__name__ = name  # by which timm knows it
    register_model(create)


for _name, _network in _NETWORKS.items():
    _register(_name, *_network)


def create_backbone(name: str, channels: int, image_size: int, zero_init_last: bool = True) -> nn.Module:
    """Build a randomly initialised backbone that maps images [B, channels, S, S] to pooled features [B, D].

    ``name`` is timm's, or one of ours for small images, such as ``resnet18_narrow`` (D 128). With ``zero_init_last``,
    timm's way (Goyal et al. 2017, arXiv 1706.02677, section 5.1), residual branches with batch norm start at zero;
    without, as in torchvision and MoCo v1 and v2, all batch norms scale by one.

    Raises:
        UserError: timm has no such model, or it can't take images of this size.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise UserError(f"--backbone {name}: timm has no such model; {hint}")
    with _taking(name, channels, image_size, "--image-size"):
        backbone: nn.Module = timm.create_model(name, num_classes=0, in_chans=channels, **size_option(name, image_size))
        _initialise(backbone, zero_init_last)
        features = _features(backbone, channels, image_size)
    if features.ndim != 2:
        raise UserError(f"--backbone {name}: gives no pooled features (shape {tuple(features.shape)})")
    return backbone.train()


def check_view_sizes(backbone: nn.Module, name: str, channels: int, sizes: Iterable[int]) -> None:
    """Raise `UserError` if ``backbone``, called ``name``, can't take views of one of ``sizes``, as most ViTs."""
    for size in sizes:
        with _taking(name, channels, size, "--view-size and --view-size-end"):
            _features(backbone, channels, size)


@contextmanager
def _taking(name: str, channels: int, size: int, flag: str) -> Iterator[None]:
    """Inside, whatever fails is the size's fault."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"--backbone {name}: can't take {channels}-channel images of {size} pixels ({reason_of(error)}); "
            f"choose another --backbone or {flag}"
        ) from None


@torch.no_grad()
def _features(backbone: nn.Module, channels: int, size: int) -> torch.Tensor:
    """Of two blank images; the backbone's statistics and mode stay."""
    training = backbone.training
    features: torch.Tensor = backbone.eval()(torch.zeros(2, channels, size, size))
    backbone.train(training)
    return features


def size_option(name: str, image_size: int) -> dict[str, Any]:
    """What ``timm.create_model`` has to be told of the image size: models of a fixed one (ViT, Swin) which it is."""
    known = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if known and known.fixed_input_size else {}


@torch.no_grad()
def _initialise(backbone: nn.Module, zero_init_last: bool) -> None:
    """No stochastic depth: the papers use none, and every draw of a run must be a function of seed and step. ViTs as in
    MoCo v3 (arXiv 2104.02057): fixed sine-cosine positions, uniform (Xavier) weights, also of the patch projection."""
    for module in backbone.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        if not zero_init_last and isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)
    if not isinstance(backbone, VisionTransformer) or backbone.pos_embed is None:
        return
    backbone.init_weights("moco")
    projection = backbone.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    grid, dim = list(backbone.patch_embed.grid_size), backbone.embed_dim
    positions = build_sincos2d_pos_embed(grid, dim, interleave_sin_cos=True)
    backbone.pos_embed.zero_()  # of class and register tokens, which come first
    backbone.pos_embed[0, -len(positions) :] = positions
    backbone.pos_embed.requires_grad_(False)


def freeze_patch_projection(backbone: nn.Module) -> None:
    """Keep a ViT's patch projection random, which keeps its training stable (MoCo v3, section 4.2)."""
    if isinstance(backbone, VisionTransformer):
        backbone.patch_embed.proj.requires_grad_(False)


def feature_dim(backbone: nn.Module) -> int:
    """Length D of a backbone's pooled features."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
