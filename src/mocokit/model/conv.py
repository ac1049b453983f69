"""Convolutions of small images as matrix products, for CPUs with matrix units for bfloat16 (Intel's AMX).

torch's convolutions there work along the rows of an image: on a row of 4 pixels, as the last stage of a ResNet has
at 32 pixels, they reach a tenth of the speed that a matrix product of the same numbers has (docs/LOG.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

SMALL = 4  # pixels of a side of the result, up to which the weight's gradient is faster as a product
WIDE = 256  # channels of the input, from which on the result and the input's gradient are, too


def _columns(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """What each pixel of the result sees of ``x`` [N, C, H, W]: [N h w, kernel kernel C], the sums' factors."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[padding] * 4)).contiguous()
    N, H, W, C = x.shape
    h, w = (H - kernel) // stride + 1, (W - kernel) // stride + 1
    seen = x.as_strided((N, h, w, kernel, kernel * C), (H * W * C, stride * W * C, stride * C, W * C, 1))
    return seen.reshape(N * h * w, kernel * kernel * C)


def _add_up(columns: Tensor, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The transpose of `_columns`: [N h w, kernel kernel C] added up where they came from in ``x`` [N, C, H, W]."""
    N, C, H, W = x.shape
    total = columns.new_zeros(N, H + 2 * padding, W + 2 * padding, C)
    h, w = (total.shape[1] - kernel) // stride + 1, (total.shape[2] - kernel) // stride + 1
    parts = columns.view(N, h, w, kernel, kernel, C)
    for i in range(kernel):
        for j in range(kernel):
            total[:, i : i + stride * h : stride, j : j + stride * w : stride] += parts[:, :, :, i, j]
    return total[:, padding : padding + H, padding : padding + W].permute(0, 3, 1, 2)


def _weight_gradient(rows: Tensor, x: Tensor, weight: Tensor, geometry: tuple[int, int, int]) -> Tensor:
    """Of what the convolution gives for ``x``; ``rows`` [N h w, D] is the gradient of that."""
    D, C, kernel, _ = weight.shape
    return (rows.T @ _columns(x, *geometry)).view(D, kernel, kernel, C).permute(0, 3, 1, 2)


class _Product(torch.autograd.Function):
    """The convolution of x [N, C, H, W] with weight [D, C, kernel, kernel] as a matrix product, gradients too.

    Gives a row for each pixel of the result, [N h w, D].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        D, _, kernel, _ = weight.shape
        ctx.save_for_backward(x, weight)
        ctx.geometry = kernel, stride, padding
        return _columns(x, *ctx.geometry) @ weight.permute(2, 3, 1, 0).reshape(-1, D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (x, weight), dy = ctx.saved_tensors, gradients[0]
        d_weight = _weight_gradient(dy, x, weight, ctx.geometry)
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None
        d_columns = dy @ weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        return _add_up(d_columns, x, *ctx.geometry), d_weight, None, None


class _ProductOfGradient(torch.autograd.Function):
    """torch's convolution, of which the weight's gradient alone is a matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (x, weight), dy = ctx.saved_tensors, gradients[0]
        rows = dy.permute(0, 2, 3, 1).reshape(-1, len(weight))
        d_weight = _weight_gradient(rows, x, weight, (weight.shape[2], ctx.stride, ctx.padding))
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = conv2d_input(x.shape, weight, dy, ctx.stride, ctx.padding)
        return d_x, d_weight, None, None


class ProductConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that uses matrix products where autocast asks for bfloat16 on a CPU and they are faster."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        h, w = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
        small = max(h, w) <= SMALL and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        gains = small and (self.in_channels >= WIDE or torch.is_grad_enabled())
        if not gains or torch.compiler.is_compiling():  # which takes torch's compiler forever
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), self.weight.to(dtype)
        if self.in_channels >= WIDE:
            rows: Tensor = _Product.apply(x, weight, stride, padding)
            y = rows.view(len(x), h, w, -1).permute(0, 3, 1, 2)
        else:
            y = _ProductOfGradient.apply(x, weight, stride, padding)
        return y if self.bias is None else y + self.bias.to(dtype).view(-1, 1, 1)


def multiply_small(module: nn.Module) -> nn.Module:
    """Let the convolutions of ``module`` that can be products be that on small images; the rest stays."""
    for conv in module.modules():
        if type(conv) is nn.Conv2d and _is_plain(conv):
            conv.__class__ = ProductConv2d
    return module


def _is_plain(conv: nn.Conv2d) -> bool:
    """Of all channels, with a square kernel, zeros around the image and equal steps both ways."""
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return square and plain and not isinstance(conv.padding, str)
