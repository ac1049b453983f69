"""Views made one image at a time by torchvision's operations, to compare ours with.

Tolerances are absolute, for pixels in [0, 1]: `POINT` for colours and blur, `RESAMPLED` for resampling (both sides
compute filter positions up to 100 pixels in float32).
"""

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mocokit.data.augment import augment
from mocokit.data.view_params import AUGMENTATIONS, AugmentParams

POINT, RESAMPLED = 2e-6, 2e-5
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
SEEDS = st.integers(0, 2**31)
SETS = AUGMENTATIONS | {
    "v3": replace(AUGMENTATIONS["v3"], blur_p=1.0),
    "v3, view 2": replace(AUGMENTATIONS["v3"], blur_p=0.1, solarize_p=0.2),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def full_sizes(images: Tensor) -> Tensor:
    return torch.tensor(images.shape[-2:]).expand(len(images), 2)


def plain_params(images: Tensor) -> AugmentParams:
    """Parameters of the view that shows each whole canvas and changes nothing."""
    B, _, H, W = images.shape
    return AugmentParams(
        box=torch.tensor([0, 0, H, W]).repeat(B, 1),
        flip=torch.zeros(B, dtype=torch.bool),
        jittered=torch.zeros(B, dtype=torch.bool),
        factors=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(B, 1),
        order=torch.arange(4).repeat(B, 1),
        gray=torch.zeros(B, dtype=torch.bool),
        sigma=torch.zeros(B),
        solarized=torch.zeros(B, dtype=torch.bool),
        gray_first=False,
        blur_radius=6,
    )


def unnormalised(images: Tensor, params: AugmentParams, size: int) -> Tensor:
    C = images.shape[1]
    return augment(images, params, size, mean=[0.0] * C, std=[1.0] * C)


def torchvision_jitter(x: Tensor, params: AugmentParams, i: int) -> Tensor:
    for operation in params.order[i].tolist():
        factor = params.factors[i, operation].item()
        if operation == BRIGHTNESS:
            x = (x * factor).clamp(0, 1) if len(x) not in (1, 3) else F.adjust_brightness(x, factor)
        elif operation == CONTRAST and len(x) not in (1, 3):
            x = (factor * x + (1 - factor) * x.mean()).clamp(0, 1)
        elif operation == CONTRAST:
            x = F.adjust_contrast(x, factor)
        elif operation == SATURATION and len(x) == 3:
            x = F.adjust_saturation(x, factor)
        elif operation == HUE and len(x) == 3:
            x = F.adjust_hue(x, factor)
    return x


def torchvision_view(image: Tensor, params: AugmentParams, i: int, size: int) -> Tensor:
    x = F.resized_crop(image.float() / 255, *params.box[i].tolist(), [size, size], antialias=True)
    if params.flip[i]:
        x = F.horizontal_flip(x)
    if params.gray[i] and params.gray_first:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if params.jittered[i]:
        x = torchvision_jitter(x, params, i)
    if params.gray[i] and not params.gray_first:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if params.sigma[i] > 0:
        kernel = 2 * min(params.blur_radius, size - 1) + 1
        x = F.gaussian_blur(x, [kernel, kernel], [params.sigma[i].item()])
    if params.solarized[i]:
        x = F.solarize(x, threshold=0.5)
    return x
