"""Residual networks whose batch norms add and rectify, too, in training on a CPU (`fused`)."""

from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from mocokit.model.norm import SPLIT, SplitBatchNorm2d, SplitBatchNormAct2d


class FusedBasicBlock(BasicBlock):
    """timm's block of two convolutions (He et al. 2016, arXiv 1512.03385, figure 5)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x), relu=True)
        y: Tensor = self.bn2(self.conv2(x), shortcut, relu=True)
        return y


class FusedBottleneck(Bottleneck):
    """timm's block of three convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x), relu=True)
        x = self.bn2(self.conv2(x), relu=True)
        y: Tensor = self.bn3(self.conv3(x), shortcut, relu=True)
        return y


FUSED: dict[type, type] = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse_residual(backbone: nn.Module) -> nn.Module:
    """Let the batch norms of timm's ResNets, where they are plain or split, work in few passes; the rest stays.

    Parameters, buffers and their names are the same, and so is what the network computes, up to rounding.
    """
    for module in backbone.modules():
        if type(module) in SPLIT:
            module.__class__ = SPLIT[type(module)]  # of one group
    for module in backbone.modules():
        if type(module) in FUSED and _is_plain(module):
            module.__class__ = FUSED[type(module)]
    if isinstance(backbone, ResNet) and type(backbone.bn1) is SplitBatchNorm2d and type(backbone.act1) is nn.ReLU:
        stem: Any = backbone.bn1
        stem.__class__ = SplitBatchNormAct2d
        stem.drop, stem.act = nn.Identity(), backbone.act1
        backbone.act1 = nn.Identity()
    return backbone


def _is_plain(block: Any) -> bool:
    """Of split batch norms and ReLUs, without attention, blurring or anything random between its convolutions."""
    layers = dict(block.named_children())
    norms, rectifiers = ([layers[name] for name in layers if name.startswith(kind)] for kind in ("bn", "act"))
    nothing = block.se is None and block.drop_path is None
    nothing = nothing and type(block.drop_block) is type(block.aa) is nn.Identity
    return nothing and {*map(type, norms)} == {SplitBatchNorm2d} and {*map(type, rectifiers)} == {nn.ReLU}
