"""The two views of MoCo: batches of uint8 images in, augmented and normalised float batches out.

Parameters are drawn on the CPU, so every device renders the same views, and the host knows which images get which
operation without waiting for the device. The operations are torchvision's, batched.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mocokit.data.view_operations import (
    Interpolation,
    blend,
    blur,
    luminance,
    normalise,
    resample,
    shift_hue,
    to_device,
)
from mocokit.data.view_params import CONTRAST, HUE, SATURATION, AugmentParams

_NO_JITTER = 4  # in place of the step (0-3) of an image's hue operation
_CPU_CHUNK_BYTES = 3_000_000  # of float pixels at a time per core; measured: cache against calls


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
            x = resample(images[rows], box[rows], unflipped[rows], size, interpolation)
            views[rows] = normalise(x, mean, std).transpose(0, 1)
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
    x = resample(images, params.box, params.flip, out.shape[-1])
    if params.gray_first:
        _change(x, params.gray, luminance)
    _jitter(x, params, hue_step)
    if not params.gray_first:
        _change(x, params.gray, luminance)
    solarized = params.solarized
    if params.sigma.any():
        sigma, by_blur = params.sigma.sort(descending=True)
        sigma = sigma[sigma > 0]
        sorting, solarized = sorting[by_blur], solarized[by_blur]
        x = x.index_select(1, to_device(by_blur, x.device))
        blur(x[:, : len(sigma)], sigma, params.blur_radius)
    _change(x, solarized, lambda pixels: torch.where(pixels < 0.5, pixels, 1 - pixels))
    unsorted = to_device(sorting.argsort(), x.device)
    torch.index_select(normalise(x, mean, std).transpose(0, 1), 0, unsorted, out=out)


def _change(x: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> None:
    """Replace the chosen images by what ``operation`` makes of them, in place. x: [C, B, S, S]; chosen: [B] bool."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        rows = to_device(rows, x.device)
        x[:, rows] = operation(x.index_select(1, rows))


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
        blend(x[:, end[step] : jittered], *blends[step][:, end[step] : jittered])
    if len(x) == 3:
        shift_hue(x[:, :jittered], to_device(params.factors[:jittered, HUE], x.device))
    for step in range(1, 4):
        blend(x[:, : end[step - 1]], *blends[step][:, : end[step - 1]])
