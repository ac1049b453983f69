"""LiDAR: how many directions tell images apart by more than their own views differ; it chooses views without labels."""

from dataclasses import replace

import torch
from torch import Tensor

from mocokit.data.augment import augment
from mocokit.data.sampler import generator, random_subset
from mocokit.data.store import ImageSet
from mocokit.data.view_params import AUGMENTATIONS, Augmentation, sample_params
from mocokit.evaluation.features import BATCH, gathered, rows_of
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import encode

IMAGES, VIEWS = 1000, 8
STRENGTH, GRAY_P, CROP_MIN = 0.5, 0.1, 0.35  # whatever an encoder was trained with: between all that is tried
DELTA = 1e-4  # keeps directions in which no views differ from counting without limit


def lidar(views: Tensor) -> float:
    """Effective rank of what tells images apart in features [N, V, D] of V views of N images, from 1 to min(N - 1, D).

    Thilak et al. 2023, arXiv 2312.04000: of linear discriminant analysis with each image a class, exp of the entropy of
    the normalised eigenvalues.
    """
    x = views.double()
    means = x.mean(1)
    centred, rest = means - means.mean(0), (x - means[:, None]).flatten(0, 1)
    between = centred.T @ centred / (len(x) - 1)
    within = rest.T @ rest / (len(rest) - len(x)) + DELTA * torch.eye(x.shape[2], dtype=x.dtype)
    values, vectors = torch.linalg.eigh(within)
    root = vectors * values.rsqrt()
    spectrum = torch.linalg.eigvalsh(root.T @ between @ root).clamp(min=0)
    p = spectrum / spectrum.sum().clamp(min=torch.finfo(x.dtype).tiny) + 1e-12
    return float((-(p * p.log()).sum()).exp())


def trial_views(encoder: Encoder, images: ImageSet) -> Tensor:
    """Features [N, V, D] of some ``images``, always the same views, between the papers' and mild ones.

    Raises:
        NonFiniteFeatures: some are infinite or not a number.
    """
    rows, spec = random_subset(len(images), IMAGES, 0), encoder.spec
    neutral, draw = neutral_views(images.channels), generator(0, "trial views")
    views = []
    for _ in range(VIEWS):
        batches = (rows_of(images, part, encoder.device) for part in rows.split(BATCH))
        drawn = (
            augment(x, sample_params(neutral, sizes, images.channels, draw), spec.image_size, spec.mean, spec.std)
            for x, sizes in batches
        )
        views.append(gathered(encode(encoder, ((x,) for x in drawn), images=len(rows), precision="fp32"), len(rows)))
    return torch.stack(views, 1)


def neutral_views(channels: int) -> Augmentation:
    """The views that every encoder is scored with."""
    base = AUGMENTATIONS["v2"]
    brightness, contrast, saturation, hue = (STRENGTH * strength for strength in base.jitter)
    return replace(
        base,
        jitter=(brightness, contrast, saturation, hue),
        gray_p=GRAY_P if channels == 3 else 0.0,
        crop_scale=(CROP_MIN, 1.0),
        flip_p=0.0,
        blur_p=0.0,
    )
