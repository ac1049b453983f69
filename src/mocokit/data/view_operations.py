"""The operations that views are made of, torchvision's in batches: pixels are floats [C, B, S, S], channel first."""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's

Interpolation = Literal["bilinear", "bicubic"]


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for the device; what is there already stays."""
    if device.type != "cuda" or host.device == device:
        return host.to(device)
    # From ordinary memory CUDA may wait for all that it was given before, if there are more than 64 KB to copy.
    return host.pin_memory().to(device, non_blocking=True)


def resample(images: Tensor, box: Tensor, flip: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Crop, resize (antialiased) and flip as two matrix products; pixels become floats in [0, 1].

    uint8 [B, C, H, W] -> float32 [C, B, size, size].
    """
    B, C, H, W = images.shape
    # Rows and columns of all images are one batch of 2 B filters, [2 B, max(H, W), size].
    start, length = box.view(B, 2, 2).permute(1, 2, 0).reshape(2, 2 * B)
    flips = torch.cat([torch.zeros_like(flip), flip])
    weights = _resample_weights(start, length, flips, max(H, W), size, images.device, interpolation)
    rows, columns = weights[:B, :H], weights[B:, :W]
    columns.div_(255)
    pixels = images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    x = pixels.new_empty(C, B, size, size)
    for channel, resized in zip(pixels, x, strict=True):
        torch.bmm(rows.mT, torch.bmm(channel, columns), out=resized)
    return x


def _resample_weights(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    extent: int,
    size: int,
    device: torch.device,
    interpolation: Interpolation,
) -> Tensor:
    """Filters from `length` pixels at `start` to `size` pixels, [N, extent, size]; columns sum to 1.

    A triangle reaches one input pixel to either side when enlarging and one output pixel when reducing; the cubic, of
    Keys 1981 with a = -1/2 (equation 4), twice as far. Weights outside the box are zero. start, length, flip: [N].
    """
    scale = length[:, None].double() / size
    reach = scale.clamp(min=1)
    target = torch.arange(size, device=start.device) + 0.5
    # Pixel centres, counted from the box's start: target [N, size], source [N, extent].
    target = torch.where(flip[:, None], size - target, target) * scale
    source = torch.arange(extent, device=start.device) - start[:, None]
    outside = (source < 0) | (source >= length[:, None])
    source = (source + 0.5).masked_fill_(outside, math.inf)
    source, target = (to_device((x / reach).float(), device) for x in (source, target))
    distance = (source[:, :, None] - target[:, None, :]).abs_()
    if interpolation == "bicubic":
        distance.clamp_(max=2)
        near, far = ((1.5 * distance - 2.5) * distance**2 + 1), ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, far)
        return weights.div_(weights.sum(dim=1, keepdim=True))
    negative = distance.sub_(1).clamp_(max=0)
    return negative.div_(negative.sum(dim=1, keepdim=True))


def luminance(x: Tensor) -> Tensor:
    """[C, B, S, S] -> [B, S, S]; for other than three channels it is their mean."""
    if len(x) != 3:
        return x.mean(dim=0)
    r, g, b = _GRAY_WEIGHTS
    return torch.mul(x[0], r).add_(x[1], alpha=g).add_(x[2], alpha=b)


def blend(x: Tensor, factor: Tensor, to_gray: Tensor, to_mean: Tensor) -> None:
    """Brightness, saturation or contrast, which blend with black, the image in gray, and the mean of that, in place:
    x [C, B, S, S] becomes clamp(factor * x + to_gray * gray + to_mean * mean(gray)); weights are [B, 1, 1]."""
    gray = luminance(x)
    mean = gray.mean(dim=(1, 2), keepdim=True)
    other = gray.mul_(to_gray).add_(mean.mul_(to_mean))
    torch.addcmul(other, x, factor, out=x).clamp_(0, 1)


def shift_hue(x: Tensor, turns: Tensor) -> None:
    """Turn the hue in place, keeping value and chroma. x: [3, B, S, S] in [0, 1]; turns: [B] in [-0.5, 0.5].

    From HSV's definition, without its case distinctions: in sixths of a turn the hue lies
    (g + b - r + max - 2 min) / chroma away from red, towards green if g > b, and each channel of the result
    is a trapezoid of the hue.
    """
    r, g, b = x
    value = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = value - low
    from_red = (g + b).sub_(r).add_(value).sub_(low, alpha=2).copysign_(g - b)
    # A gray pixel is 0 / tiny = red of no chroma. One whole turn more keeps frac() from negative numbers.
    hue = torch.addcdiv(turns[:, None, None] + 1, from_red, chroma.clamp(min=1e-12), value=1 / 6).frac_().mul_(6)
    for channel, complement in ((g, 2), (b, 4)):
        torch.sub(hue, complement, out=channel).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(value, channel, chroma, value=-1, out=channel)
    torch.sub(hue, 3, out=r).abs_().sub_(1).clamp_(0, 1)
    torch.addcmul(low, r, chroma, out=r)


def blur(x: Tensor, sigma: Tensor, radius: int) -> None:
    """Gaussian blur, reflecting at the edges, in place: two products with banded matrices [B, S, S].

    x: [C, B, S, S]; sigma: [B], of which 0 blurs nothing.
    """
    size = x.shape[-1]
    radius = min(radius, size - 1)
    distance = torch.arange(radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None].double().clamp(min=1e-3)) ** 2)
    kernel.masked_fill_(kernel < 1e-12, 0)  # denormal float32 weights would halve the speed of the products
    kernel /= 2 * kernel.sum(dim=1, keepdim=True) - 1  # both sides, the centre once
    weights = to_device(kernel.float(), x.device) @ _blur_taps(size, radius, x.device).flatten(1)
    weights = weights.view(-1, size, size)
    for channel in x:
        torch.bmm(torch.bmm(weights, channel), weights.mT, out=channel)


@functools.cache
def _blur_taps(size: int, radius: int, device: torch.device) -> Tensor:
    """How often input pixel j lies at distance d of output pixel i, reflections included: [d, i, j]."""
    i = torch.arange(size)
    taps = torch.zeros(radius + 1, size, size)
    # Where pixel j appears: in its place and mirrored at either edge, the edge pixels themselves only once.
    for position, shown in ((i, i >= 0), (-i, i > 0), (2 * (size - 1) - i, i < size - 1)):
        distance = (position[None, :] - i[:, None]).abs()
        taps += (torch.arange(radius + 1)[:, None, None] == distance) & shown
    return taps.to(device)


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std for each channel, in place. x: [C, B, S, S]."""
    for channel, m, s in zip(x, mean, std, strict=True):
        channel.sub_(m).mul_(1 / s)
    return x
