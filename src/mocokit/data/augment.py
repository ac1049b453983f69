"""The two views of MoCo: batches of uint8 images in, augmented and normalised float batches out.

Parameters are drawn on the CPU, so every device renders the same views, and the host knows which images get which
operation without waiting for the device. The operations are torchvision's, batched.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from mocokit.data.view_params import CONTRAST, HUE, SATURATION, AugmentParams

_NO_JITTER = 4  # in place of the step (0-3) of an image's hue operation
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's
_CPU_CHUNK_BYTES = 3_000_000  # of float pixels at a time per core; measured: cache against calls

Interpolation = Literal["bilinear", "bicubic"]


@torch.no_grad()
def augment(images: Tensor, params: AugmentParams, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Make one view of each image, on the images' device: crop and flip, colours, blur, solarize, normalisation.

    Pixels outside an image's box have no influence. Before the normalisation values lie in [0, 1] to float32 rounding.

    Args:
        images: uint8 [B, C, H, W].
        params: of the same B images.
        size: height and width of the views, in pixels.
        mean, std: C numbers each, for pixels in [0, 1].

    Returns:
        float32 [B, C, size, size], whatever autocast says.
    """
    views = images.new_empty(*images.shape[:2], size, size, dtype=torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        for rows in _chunks(images, size):
            _render_chunk(images[rows], params[rows], mean, std, out=views[rows])
    return views


@torch.no_grad()
def center_view(
    images: Tensor,
    sizes: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """The view for evaluation: the central square of ``crop`` times the shorter side, resized and normalised.

    Without ``crop`` it is `usual_crop`. ``sizes`` [B, 2] integers on the CPU are the height and width of each image in
    the canvas's top left corner; for the other arguments and the result see `augment`.
    """
    side = sizes.amin(dim=1, keepdim=True).double()
    side = (side * (usual_crop(size) if crop is None else crop)).round().clamp_(min=1)
    box = torch.cat([((sizes - side) / 2).round(), side, side], dim=1).long()
    unflipped = torch.zeros(len(sizes), dtype=torch.bool)
    views = images.new_empty(*images.shape[:2], size, size, dtype=torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        for rows in _chunks(images, size):
            x = _resample(images[rows], box[rows], unflipped[rows], size, interpolation)
            views[rows] = _normalise(x, mean, std).transpose(0, 1)
    return views


def usual_crop(size: int) -> float:
    """Share of the shorter side that is looked at: all of it up to 64 pixels, above 7/8, ImageNet's 224 of 256."""
    return 0.875 if size > 64 else 1.0


def _chunks(images: Tensor, size: int) -> Iterator[slice]:
    """Rows to work on at a time, in parts of about equal size: on the CPU as many as suit it, else all."""
    B, C, H, W = images.shape
    parts = 1
    if images.device.type == "cpu":
        total_bytes = 4 * B * C * max(H * W, size * size)
        parts = max(1, round(total_bytes / (_CPU_CHUNK_BYTES * torch.get_num_threads())))
    step = max(1, math.ceil(B / parts))
    return (slice(start, start + step) for start in range(0, B, step))


def _render_chunk(
    images: Tensor, params: AugmentParams, mean: Sequence[float], std: Sequence[float], out: Tensor
) -> None:
    """Fill `out`. Works channel first, [C, B, size, size]: then one channel of all images is one block.

    Images are sorted by the step of their hue operation, so that the subsets which operations work on are slices;
    gathering and scattering would cost more than the sorting. Three images as an example: of A, hue is the third of
    its four colour operations (step 2), B has no jitter, of C hue is the first (step 0). Sorted they are C, A, B:

        steps 0 and 1   rows 1:2   A, what comes before its hue operation
        hue             rows 0:2   C and A at once, since it is the costly one
        steps 1 and 2   rows 0:1   C, what comes after hue
        step 3          rows 0:2   C and A

    B is never touched. Then all are sorted by blur, so that those to be blurred are a slice, too.
    """
    hue_step = (params.order == HUE).int().argmax(dim=1).masked_fill_(~params.jittered, _NO_JITTER)
    hue_step, sorting = hue_step.sort(stable=True)
    params = params[sorting]
    images = images.index_select(0, to_device(sorting, images.device))
    x = _resample(images, params.box, params.flip, out.shape[-1])
    if params.gray_first:
        _change(x, params.gray, _luminance)
    _jitter(x, params, hue_step)
    if not params.gray_first:
        _change(x, params.gray, _luminance)
    solarized = params.solarized
    if params.sigma.any():
        sigma, by_blur = params.sigma.sort(descending=True)
        sigma = sigma[sigma > 0]
        sorting, solarized = sorting[by_blur], solarized[by_blur]
        x = x.index_select(1, to_device(by_blur, x.device))
        _blur(x[:, : len(sigma)], sigma, params.blur_radius)
    _change(x, solarized, lambda pixels: torch.where(pixels < 0.5, pixels, 1 - pixels))
    unsorted = to_device(sorting.argsort(), x.device)
    torch.index_select(_normalise(x, mean, std).transpose(0, 1), 0, unsorted, out=out)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for the device."""
    if device.type != "cuda":
        return host.to(device)
    # From ordinary memory CUDA may wait for all that it was given before, if there are more than 64 KB to copy.
    return host.pin_memory().to(device, non_blocking=True)


def _resample(
    images: Tensor, box: Tensor, flip: Tensor, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
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
    target = torch.arange(size) + 0.5
    # Pixel centres, counted from the box's start: target [N, size], source [N, extent].
    target = torch.where(flip[:, None], size - target, target) * scale
    source = torch.arange(extent) - start[:, None]
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


def _change(x: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> None:
    """Replace the chosen images by what ``operation`` makes of them, in place. x: [C, B, S, S]; chosen: [B] bool."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        rows = to_device(rows, x.device)
        x[:, rows] = operation(x.index_select(1, rows))


def _luminance(x: Tensor) -> Tensor:
    """[C, B, S, S] -> [B, S, S]; for other than three channels it is their mean."""
    if len(x) != 3:
        return x.mean(dim=0)
    r, g, b = _GRAY_WEIGHTS
    return torch.mul(x[0], r).add_(x[1], alpha=g).add_(x[2], alpha=b)


def _jitter(x: Tensor, params: AugmentParams, hue_step: Tensor) -> None:
    """The four colour operations of each jittered image in its own order, in place.

    x: [C, B, S, S], sorted by `hue_step` (the step of each image's hue operation, or `_NO_JITTER`), so that the costly
    hue operation can run once for all images, after the steps before it and before those after it.
    """
    end = torch.bincount(hue_step, minlength=_NO_JITTER + 1).cumsum(0).tolist()  # images up to each hue step
    jittered = end[_NO_JITTER - 1]
    if not jittered:
        return
    factor = params.factors.gather(1, params.order)
    to_gray = (1 - factor) * (params.order == SATURATION)
    to_mean = (1 - factor) * (params.order == CONTRAST)
    # One row of four steps for each image: [factor, to_gray, to_mean] x [B, 1, 1] at a step.
    blends = to_device(torch.stack([factor, to_gray, to_mean]), x.device)[..., None, None].unbind(2)
    for step in range(3):
        _blend(x[:, end[step] : jittered], *blends[step][:, end[step] : jittered])
    if len(x) == 3:
        _shift_hue(x[:, :jittered], to_device(params.factors[:jittered, HUE], x.device))
    for step in range(1, 4):
        _blend(x[:, : end[step - 1]], *blends[step][:, : end[step - 1]])


def _blend(x: Tensor, factor: Tensor, to_gray: Tensor, to_mean: Tensor) -> None:
    """Brightness, saturation or contrast, which blend with black, the image in gray, and the mean of that, in place:
    x [C, B, S, S] becomes clamp(factor * x + to_gray * gray + to_mean * mean(gray)); weights are [B, 1, 1]."""
    gray = _luminance(x)
    mean = gray.mean(dim=(1, 2), keepdim=True)
    other = gray.mul_(to_gray).add_(mean.mul_(to_mean))
    torch.addcmul(other, x, factor, out=x).clamp_(0, 1)


def _shift_hue(x: Tensor, turns: Tensor) -> None:
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


def _blur(x: Tensor, sigma: Tensor, radius: int) -> None:
    """Gaussian blur, reflecting at the edges, in place: two products with banded matrices [B, S, S].

    x: [C, B, S, S]; sigma: [B], positive.
    """
    size = x.shape[-1]
    radius = min(radius, size - 1)
    kernel = torch.exp(-0.5 * (torch.arange(radius + 1) / sigma[:, None].double()) ** 2)
    kernel[kernel < 1e-12] = 0  # denormal float32 weights would halve the speed of the products
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


def _normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std for each channel, in place. x: [C, B, S, S]."""
    for channel, m, s in zip(x, mean, std, strict=True):
        channel.sub_(m).mul_(1 / s)
    return x
