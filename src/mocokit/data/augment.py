"""The two views of MoCo: batches of uint8 images in, augmented and normalised float batches out.

Parameters are drawn on the CPU, so every device renders the same views, and the host knows which images get which
operation without waiting for the device. The operations are torchvision's, batched.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mocokit.config import PretrainConfig

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_IDENTITY = (1.0, 1.0, 1.0, 0.0)  # the factors of the four jitter operations that change nothing
_NO_JITTER = 4  # in place of the step (0-3) of an image's hue operation
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's
VIEW_STEP, VIEW_STEPS = 4, 4  # pixels by which views grow, or a multiple of it; how often at most
_CROP_ATTEMPTS = 10  # torchvision's
_CPU_CHUNK_BYTES = 3_000_000  # of float pixels at a time per core; measured: cache against calls


@dataclass(frozen=True)
class Augmentation:
    """One distribution of views: probabilities (0-1) and ranges, as torchvision's transforms define them.

    `jitter` holds the strengths of brightness, contrast, saturation, hue; `blur_sigma` is in output pixels.
    """

    jitter: tuple[float, float, float, float]
    jitter_p: float
    gray_p: float
    gray_first: bool
    blur_p: float
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    solarize_p: float = 0.0


# He et al. 2020, "Technical details", in the order of the authors' code: grayscale before the jitter.
_V1 = Augmentation(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=0.2, gray_first=True, blur_p=0.0)
# Chen et al. 2020 (MoCo v2), "aug+": SimCLR's jitter at a lower strength, and blur.
_V2 = Augmentation(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, gray_p=0.2, gray_first=False, blur_p=0.5)
# Chen et al. 2021 (MoCo v3), after BYOL: two distributions.
_V3 = Augmentation(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2, gray_first=False, blur_p=1.0)

# The distributions of view 1 and view 2.
AUGMENTATIONS = {"v1": (_V1, _V1), "v2": (_V2, _V2), "v3": (_V3, replace(_V3, blur_p=0.1, solarize_p=0.2))}


def augmentations(config: PretrainConfig) -> tuple[Augmentation, Augmentation]:
    """The named distributions of both views with the configuration's own probabilities and strengths."""

    def adjusted(base: Augmentation, blur_p: float, solarize_p: float) -> Augmentation:
        brightness, contrast, saturation, hue = (config.jitter_strength * s for s in base.jitter)
        base = replace(base, jitter=(brightness, contrast, saturation, min(hue, 0.5)), gray_p=config.gray_p)
        base = replace(base, crop_scale=(config.crop_min, 1.0), flip_p=config.flip_p)
        return replace(base, blur_p=blur_p, solarize_p=solarize_p)

    first, second = AUGMENTATIONS[config.views]
    return adjusted(first, config.blur_p, 0.0), adjusted(second, config.blur_p2, config.solarize_p2)


@dataclass(frozen=True)
class AugmentParams:
    """What is done to each of B images, on the CPU; `params[index]` selects images as a tensor's rows."""

    box: Tensor  # [B, 4] int64: top, left, height, width
    flip: Tensor  # [B] bool
    jittered: Tensor  # [B] bool: false leaves the image's colours exactly alone
    factors: Tensor  # [B, 4] float32: brightness, contrast, saturation; hue in turns
    order: Tensor  # [B, 4] int64: the permutation in which the four factors apply
    gray: Tensor  # [B] bool
    sigma: Tensor  # [B] float32: of the Gaussian blur in output pixels; 0 is none
    solarized: Tensor  # [B] bool
    gray_first: bool  # grayscale before the jitter
    blur_radius: int  # of every blur kernel, in output pixels

    def __len__(self) -> int:
        return len(self.box)

    def __getitem__(self, index: Tensor | slice) -> "AugmentParams":
        rows: dict[str, Any] = {name: x[index] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **rows)


def sample_params(
    augmentation: Augmentation, sizes: Tensor, channels: int, generator: torch.Generator
) -> AugmentParams:
    """Draw one view for each of B images; unless they have 3 channels, without saturation, hue and grayscale.

    ``sizes`` [B, 2] integers are their heights and widths; ``generator`` advances by an amount that depends on B
    alone; both are on the CPU.
    """
    B = len(sizes)
    draws = torch.rand(4 * _CROP_ATTEMPTS + 14, B, generator=generator, dtype=torch.float64)
    attempts, u = draws.split((4 * _CROP_ATTEMPTS, 14))
    flip_u, jitter_u, gray_u, blur_u, sigma_u = u[:5]
    jittered = jitter_u < augmentation.jitter_p
    gray = (gray_u < augmentation.gray_p) & (channels == 3)
    factors = _jitter_factors(augmentation.jitter, u[5:9].T)
    factors[~jittered] = torch.tensor(_IDENTITY)
    if channels != 3:
        factors[:, _SATURATION:] = torch.tensor(_IDENTITY[_SATURATION:])
    low, high = augmentation.blur_sigma
    sigma = (low + (high - low) * sigma_u) * (blur_u < augmentation.blur_p)
    return AugmentParams(
        box=_crop_boxes(augmentation, sizes, attempts.view(4, _CROP_ATTEMPTS, B)),
        flip=flip_u < augmentation.flip_p,
        jittered=jittered,
        factors=factors,
        order=u[9:13].T.argsort(dim=1),
        gray=gray,
        sigma=sigma.float(),
        solarized=u[13] < augmentation.solarize_p,
        gray_first=augmentation.gray_first,
        blur_radius=math.ceil(3 * high),
    )


def _jitter_factors(strengths: tuple[float, float, float, float], u: Tensor) -> Tensor:
    """Uniform in [max(0, 1 - s), 1 + s], hue in [-s, s]. u: [B, 4] in [0, 1) -> float32 [B, 4]."""
    s, centre = torch.tensor([strengths, _IDENTITY], dtype=torch.float64)
    low = centre - s
    low[:_HUE].clamp_(min=0)
    return (low + (centre + s - low) * u).float()


def _crop_boxes(augmentation: Augmentation, sizes: Tensor, u: Tensor) -> Tensor:
    """RandomResizedCrop's rule: of ten random boxes the first that fits, else the central crop nearest to it.

    u: [4, attempts, B] in [0, 1) for area, aspect ratio, top and left -> int64 [B, 4].
    """
    height, width = sizes.double().T
    low, high = augmentation.crop_scale
    area = height * width * (low + (high - low) * u[0])
    min_ratio, max_ratio = augmentation.crop_ratio
    ratio = torch.exp(math.log(min_ratio) + math.log(max_ratio / min_ratio) * u[1])
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = fits.int().argmax(dim=0, keepdim=True)
    h, w, top_u, left_u = (x.gather(0, first)[0] for x in (h, w, u[2], u[3]))
    top, left = (top_u * (height - h + 1)).floor(), (left_u * (width - w + 1)).floor()

    central_h = torch.minimum(height, (width / min_ratio).round())
    central_w = torch.minimum(width, (height * max_ratio).round())
    central = [((height - central_h) / 2).floor(), ((width - central_w) / 2).floor(), central_h, central_w]
    box = torch.where(fits.any(dim=0), torch.stack([top, left, h, w]), torch.stack(central))
    return box.T.long()


def view_sizes(start: int, end: int) -> list[int]:
    """The sides that views have in turn: at most `VIEW_STEPS` equal steps, multiples of `VIEW_STEP`, but the last."""
    growth = VIEW_STEP * max(1, math.ceil((end - start) / (VIEW_STEP * VIEW_STEPS)))
    return [*range(start, end, growth), end]


def view_size_at(step: int, steps: int, start: int, end: int) -> int:
    """Side of the views of a step, from 0: that of `view_sizes` which is nearest to a line (progressive resizing)."""
    sizes = view_sizes(start, end)
    return sizes[round((len(sizes) - 1) * step / steps)]


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
def center_view(images: Tensor, sizes: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The view for evaluation: the largest central square, resized and normalised.

    Above 64 pixels it is the central 7/8 of that square, which is ImageNet's usual 224 of 256. ``sizes`` [B, 2]
    integers on the CPU are the height and width of each image in the canvas's top left corner; for the other
    arguments and the result see `augment`.
    """
    side = sizes.amin(dim=1, keepdim=True).double()
    if size > 64:
        side = (side * 0.875).round().clamp_(min=1)
    box = torch.cat([((sizes - side) / 2).round(), side, side], dim=1).long()
    unflipped = torch.zeros(len(sizes), dtype=torch.bool)
    views = images.new_empty(*images.shape[:2], size, size, dtype=torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        for rows in _chunks(images, size):
            x = _resample(images[rows], box[rows], unflipped[rows], size)
            views[rows] = _normalise(x, mean, std).transpose(0, 1)
    return views


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

    Sorting the images by the step of their hue operation, and then by blur, makes the subsets that these
    operations work on slices: gathering and scattering would cost more than the sorting.
    """
    hue_step = (params.order == _HUE).int().argmax(dim=1).masked_fill_(~params.jittered, _NO_JITTER)
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
    """Copy without waiting for the device, where that is safe for ordinary (pageable) memory."""
    return host.to(device, non_blocking=device.type == "cuda")


def _resample(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop, resize (bilinear, antialiased) and flip as two matrix products; pixels become floats in [0, 1].

    uint8 [B, C, H, W] -> float32 [C, B, size, size].
    """
    B, C, H, W = images.shape
    # Rows and columns of all images are one batch of 2 B filters, [2 B, max(H, W), size].
    start, length = box.view(B, 2, 2).permute(1, 2, 0).reshape(2, 2 * B)
    flips = torch.cat([torch.zeros_like(flip), flip])
    weights = _resample_weights(start, length, flips, max(H, W), size, images.device)
    rows, columns = weights[:B, :H], weights[B:, :W]
    columns.div_(255)
    pixels = images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    x = pixels.new_empty(C, B, size, size)
    for channel, resized in zip(pixels, x, strict=True):
        torch.bmm(rows.mT, torch.bmm(channel, columns), out=resized)
    return x


def _resample_weights(
    start: Tensor, length: Tensor, flip: Tensor, extent: int, size: int, device: torch.device
) -> Tensor:
    """Triangle filters from `length` pixels at `start` to `size` pixels, [N, extent, size]; columns sum to 1.

    The filter reaches one input pixel to either side when enlarging and one output pixel when reducing.
    Weights outside the box are zero. start, length, flip: [N].
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
    negative = (source[:, :, None] - target[:, None, :]).abs_().sub_(1).clamp_(max=0)
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
    to_gray = (1 - factor) * (params.order == _SATURATION)
    to_mean = (1 - factor) * (params.order == _CONTRAST)
    # One row of four steps for each image: [factor, to_gray, to_mean] x [B, 1, 1] at a step.
    blends = to_device(torch.stack([factor, to_gray, to_mean]), x.device)[..., None, None].unbind(2)
    for step in range(3):
        _blend(x[:, end[step] : jittered], *blends[step][:, end[step] : jittered])
    if len(x) == 3:
        _shift_hue(x[:, :jittered], to_device(params.factors[:jittered, _HUE], x.device))
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
