"""What is done to each image for a view: the papers' distributions, and parameters drawn from them.

Everything is drawn on the CPU, so every device makes the same views.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mocokit.config import PretrainConfig

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_IDENTITY = (1.0, 1.0, 1.0, 0.0)  # the factors of the four jitter operations that change nothing
_CROP_ATTEMPTS = 10  # torchvision's


@dataclass(frozen=True)
class Augmentation:
    """One distribution of views: probabilities (0-1) and ranges, as torchvision's transforms define them.

    `jitter` holds the strengths of brightness, contrast, saturation, hue; `blur_sigma` is in output pixels.
    """

    jitter: tuple[float, float, float, float]
    jitter_p: float
    gray_first: bool
    gray_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    solarize_p: float = 0.0


# What no option says: strengths and order of the colours; and v2's blur, for scores of encoders without a run.
AUGMENTATIONS = {
    # He et al. 2020, "Technical details", in the order of the authors' code: grayscale before the jitter.
    "v1": Augmentation(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_first=True),
    # Chen et al. 2020 (MoCo v2), "aug+": SimCLR's jitter at a lower strength, and blur.
    "v2": Augmentation(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, gray_first=False, blur_p=0.5),
    # Chen et al. 2021 (MoCo v3), after BYOL.
    "v3": Augmentation(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_first=False),
}


def augmentations(config: PretrainConfig) -> tuple[Augmentation, Augmentation]:
    """The distributions of view 1 and view 2."""
    base = AUGMENTATIONS[config.views]
    brightness, contrast, saturation, hue = (config.jitter_strength * s for s in base.jitter)
    both = replace(
        base,
        jitter=(brightness, contrast, saturation, min(hue, 0.5)),
        gray_p=config.gray_p,
        crop_scale=(config.crop_min, 1.0),
        flip_p=config.flip_p,
    )
    return replace(both, blur_p=config.blur_p), replace(both, blur_p=config.blur_p2, solarize_p=config.solarize_p2)


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
        factors[:, SATURATION:] = torch.tensor(_IDENTITY[SATURATION:])
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
    low[:HUE].clamp_(min=0)
    return (low + (centre + s - low) * u).float()


def _crop_boxes(augmentation: Augmentation, sizes: Tensor, u: Tensor) -> Tensor:
    """RandomResizedCrop's rule: of ten random boxes the first that fits, else the central crop nearest to it.

    u: [4, attempts, B] in [0, 1) for area, aspect ratio, top and left -> int64 [B, 4].
    """
    box, fits = _first_that_fits(augmentation, sizes, u[:, :1])
    if not fits.all():  # few, so that the other attempts are hardly any work
        late = (~fits).nonzero()[:, 0]
        box[late], fits[late] = _first_that_fits(augmentation, sizes[late], u[:, 1:, late])
    if not fits.all():
        late = (~fits).nonzero()[:, 0]
        box[late] = _central_boxes(augmentation, sizes[late])
    return box.long()


def _first_that_fits(augmentation: Augmentation, sizes: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Of the boxes drawn by ``u`` [4, attempts, B] the first that fits, or the first, [B, 4]; and whether it does."""
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
    return torch.stack([top, left, h, w], dim=1), fits.any(dim=0)


def _central_boxes(augmentation: Augmentation, sizes: Tensor) -> Tensor:
    """The largest boxes in the middle whose aspect ratio is allowed, [B, 4]."""
    height, width = sizes.double().T
    min_ratio, max_ratio = augmentation.crop_ratio
    h, w = torch.minimum(height, (width / min_ratio).round()), torch.minimum(width, (height * max_ratio).round())
    return torch.stack([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], dim=1)
