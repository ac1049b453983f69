"""The light augmentation that classifiers train on: random crop and horizontal flip, nothing else.

The linear probe of the sgd protocol and fine-tuning see the same views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mocokit.data.augment import Augmentation, augment, center_view, sample_params

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

    Args:
        images: uint8 [B, C, H, W].
        sizes: [B, 2] integers on the CPU, the height and width of each image in the canvas's top left corner.
        size: height and width of the views, in pixels.
        mean, std: C numbers each, for pixels in [0, 1].
        generator: on the CPU; it advances by an amount that depends on B alone.
        flip_p: probability of a horizontal flip.

    Returns:
        float32 [B, C, size, size], whatever autocast says.
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
    unit = [0.0] * images.shape[1], [1.0] * images.shape[1]
    views = shift(center_view(images, sizes, size, *unit), offsets, flip, padding)
    m, s = (views.new_tensor(values)[:, None, None] for values in (mean, std))
    return (views - m) / s


def shift(views: Tensor, offsets: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad each view with zeros, crop it and flip it: [B, C, S, S], channels last.

    Args:
        views: [B, C, S, S].
        offsets: [B, 2] integers from 0 to 2 ``padding``, the crop's top and left in the padded view.
        flip: [B] bool; after cropping.
        padding: pixels on each side.
    """
    B, _, S, _ = views.shape
    pixels = torch.arange(S)
    rows = offsets[:, :1] + pixels  # [B, S]
    columns = offsets[:, 1:] + torch.where(flip[:, None], S - 1 - pixels, pixels)
    which, rows, columns = (
        index.to(views.device, non_blocking=views.device.type == "cuda")
        for index in (torch.arange(B)[:, None, None], rows[:, :, None], columns[:, None, :])
    )
    return pad(views, [padding] * 4).permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)
