"""Batch norm folded into the convolutions before it: the same features with fewer passes, for evaluation alone."""

import copy
import functools

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mocokit.model.conv import ProductConv2d

RTOL, ATOL = 1e-4, 1e-5  # of the features' largest value: float32 sums in another order stay well below


@torch.no_grad()
def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``network`` in evaluation mode whose batch norms are folded into convolutions where they can be.

    Its weights lie channels last, as CPUs and GPUs like convolutions best. Which batch norm follows which
    convolution is seen in a pass of ``example`` [B, C, S, S], float32. The copy computes what the network does
    up to rounding, or it is given up for the network itself.
    """
    fast = copy.deepcopy(network).eval()
    for conv, norm in _pairs(fast, example):
        convolution, layer = fast.get_submodule(conv), fast.get_submodule(norm)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(layer, nn.BatchNorm2d)
        fast.set_submodule(conv, fuse_conv_bn_eval(convolution, layer))
        after = nn.Sequential(layer.drop, layer.act) if isinstance(layer, BatchNormAct2d) else nn.Identity()
        fast.set_submodule(norm, after)
    fast = fast.to(memory_format=torch.channels_last)
    expected, found = copy.deepcopy(network).eval()(example), fast(example)
    tolerance = ATOL * expected.abs().max() + RTOL * expected.abs()
    close = bool(((found - expected).abs() <= tolerance).all())  # never where there are no numbers
    return fast if close else network


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of the convolutions and batch norms of which the one's output is the other's input, each used once."""
    outputs: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    used: list[str] = []

    def seen(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        used.append(name)
        if type(module) in (nn.Conv2d, ProductConv2d):
            outputs[id(output)] = name, output  # kept, so that no other tensor gets its id
        elif id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], name))

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    watched = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    hooks = [module.register_forward_hook(functools.partial(seen, name)) for name, module in watched]
    network(example)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if used.count(conv) == used.count(norm) == 1]
