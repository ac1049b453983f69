"""The light augmentation that the sgd linear probe and fine-tuning train on: random crop and horizontal flip."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mocokit.data.augment import augment, center_view
from mocokit.data.view_operations import to_device
from mocokit.data.view_params import Augmentation, sample_params

PADDED_SIZE = 64  # up to here views are shifted, above they are cropped and resized
COLOUR_FLIP_P = 0.5


def flip_probability(channels: int) -> float:
    """Of a horizontal flip: 0.5 for colour images, 0 for others, which often show characters (as in pretraining)."""
    return COLOUR_FLIP_P if channels == 3 else 0.0


@torch.no_grad()
def training_view(
    images: Tensor,
    sizes: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
    flip_p: float,
) -> Tensor:
    """One randomly cropped and flipped view of each image, on the images' device.

    Up to 64 pixels: the view for evaluation (`mocokit.data.augment.center_view`), padded with black by an eighth of
    its side, of which a random part of that size is shown (He et al. 2016, section 4.2: 4 pixels at 32). Above:
    torchvision's `RandomResizedCrop` with its defaults, an area of 8 to 100 % (Szegedy et al. 2015, section 6).

    ``flip_p`` is the probability of a horizontal flip; ``generator``, on the CPU, advances by an amount that depends
    on B alone; for the other arguments and the result see `center_view`.
    """
    if size > PADDED_SIZE:
        crops = Augmentation(
            jitter=(0, 0, 0, 0), jitter_p=0, gray_p=0, gray_first=False, blur_p=0,
            crop_scale=(0.08, 1.0), flip_p=flip_p,
        )  # fmt: skip
        return augment(images, sample_params(crops, sizes, images.shape[1], generator), size, mean, std)
    padding = max(1, size // 8)
    offsets = torch.randint(2 * padding + 1, (len(images), 2), generator=generator)
    flip = torch.rand(len(images), generator=generator) < flip_p
    channels = images.shape[1]
    views = shift(center_view(images, sizes, size, [0.0] * channels, [1.0] * channels), offsets, flip, padding)
    m, s = (views.new_tensor(values)[:, None, None] for values in (mean, std))
    return (views - m) / s


def shift(views: Tensor, offsets: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad views [B, C, S, S] with ``padding`` zeros on each side, crop them and flip them; channels last.

    ``offsets`` [B, 2], integers from 0 to 2 ``padding``, are each crop's top and left; ``flip`` is [B] bool.
    """
    B, _, S, _ = views.shape
    windows = pad(views, [padding] * 4).unfold(2, S, 1).unfold(3, S, 1)  # [B, C, top, left, S, S]
    which, top, left, flip = (to_device(x, views.device) for x in (torch.arange(B), *offsets.T, flip))
    shown = windows[which, :, top, left].contiguous(memory_format=torch.channels_last)
    return torch.where(flip[:, None, None, None], shown.flip(-1), shown)
