"""Views on a GPU in one launch: of small images the calls of a view take longer than the device's work.

A CUDA graph repeats what was recorded with other numbers in the same places. So nothing may depend on what an image
gets: all images pass through every operation, and masks decide which of them it changes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mocokit.data.augment import augment
from mocokit.data.view_operations import blend, blur, luminance, normalise, resample, shift_hue
from mocokit.data.view_params import CONTRAST, HUE, SATURATION, AugmentParams

SMALL = 2**26  # bytes of a batch's views; above, the device has enough to do, and masks would be its burden
RECORDINGS = 8  # kept: one for each size of views
PACKED = 17  # numbers of an image


def augment_recorded(
    images: Tensor, params: AugmentParams, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """`augment` for a loop whose batches have one shape: on a GPU recorded with the first. Views are channels-last."""
    if not images.is_cuda or 4 * images.shape[0] * images.shape[1] * size * size > SMALL:
        return augment(images, params, size, mean, std).contiguous(memory_format=torch.channels_last)
    radius = params.blur_radius if params.sigma.any() else 0
    render = Rendering(size, tuple(mean), tuple(std), params.gray_first, radius, bool(params.solarized.any()))
    return recording(render, images.shape, images.device)(images, pack(params))


def pack(params: AugmentParams) -> Tensor:
    """All parameters of B images in one float32 tensor [17, B], for one copy to the device."""
    flags = torch.stack([params.flip, params.jittered, params.gray, params.solarized])
    return torch.cat([params.box.T, params.order.T, params.factors.T, params.sigma[None], flags]).float()


@dataclass(frozen=True)
class Rendering:
    """What `augment` does, with masks; the same result to rounding. These are the constants of a recording."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray_first: bool
    blur_radius: int  # 0 blurs nothing
    solarizes: bool

    @torch.no_grad()
    def __call__(self, images: Tensor, packed: Tensor) -> Tensor:
        """Views of ``images`` [B, C, H, W], uint8, on the device of both: float32 [B, C, size, size], channels-last."""
        box, order, factors, sigma, flags = packed.split([4, 4, 4, 1, 4])
        flip, jittered, gray, solarized = flags.bool()
        with torch.autocast(images.device.type, enabled=False):
            x = resample(images, box.T.long(), flip, self.size)
            if self.gray_first:
                x = torch.where(gray[:, None, None], luminance(x), x)
            x = _jitter(x, order.long(), factors, jittered)
            if not self.gray_first:
                x = torch.where(gray[:, None, None], luminance(x), x)
            if self.blur_radius:
                blur(x, sigma[0], self.blur_radius)
            if self.solarizes:
                x = torch.where(solarized[:, None, None] & (x >= 0.5), 1 - x, x)
            return normalise(x, self.mean, self.std).transpose(0, 1).contiguous(memory_format=torch.channels_last)


def _jitter(x: Tensor, order: Tensor, factors: Tensor, jittered: Tensor) -> Tensor:
    """The four colour operations of each jittered image in its own order: x [C, B, S, S]; order, factors [4, B].

    Hue, the costly one, comes once, between what is before it in an image's order and what is after.
    """
    factor = factors.gather(0, order)
    to_gray, to_mean = ((1 - factor) * (order == operation) for operation in (SATURATION, CONTRAST))
    weights = torch.stack([factor, to_gray, to_mean])  # of the steps of each image, [3, 4, B]
    identity = torch.eye(3, 1, device=x.device)[..., None]
    step = torch.arange(4, device=x.device)[:, None]
    hue_step = (order == HUE).int().argmax(dim=0)
    before, after = (
        torch.where(mask & jittered, weights, identity)[..., None, None].unbind(1)
        for mask in (step < hue_step, step > hue_step)
    )
    for step_weights in before[:3]:
        blend(x, *step_weights)
    if len(x) == 3:
        hued = x.clone()
        shift_hue(hued, factors[HUE])
        x = torch.where(jittered[:, None, None], hued, x)
    for step_weights in after[1:]:
        blend(x, *step_weights)
    return x


class Recording:
    """A `Rendering` of batches of one shape as a CUDA graph."""

    def __init__(self, render: Rendering, shape: torch.Size, device: torch.device) -> None:
        self.images = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.packed = torch.ones(PACKED, shape[0], device=device)
        current, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # what is made only once, workspaces and constants, has no place in the graph
            render(self.images, self.packed)
        current.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.views = render(self.images, self.packed)

    def __call__(self, images: Tensor, packed: Tensor) -> Tensor:
        """The views of ``images``, with ``packed`` from the CPU, without waiting for the device."""
        self.images.copy_(images)
        self.packed.copy_(packed.pin_memory(), non_blocking=True)
        self.graph.replay()
        return self.views.clone()


recording = functools.lru_cache(RECORDINGS)(Recording)
