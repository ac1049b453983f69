"""Two views of images as a run draws them, to look at."""

import numpy as np
import torch

from mocokit.config import PretrainConfig
from mocokit.data.augment import augment
from mocokit.data.sampler import generator, random_subset
from mocokit.data.store import ImageSet
from mocokit.data.view_params import augmentations, sample_params
from mocokit.reporting.contact_sheet import grid

PICTURED = 8  # images


def two_views(images: ImageSet, rows: np.ndarray, config: PretrainConfig) -> list[np.ndarray]:
    """The first and the second view of the images at ``rows`` [B]: uint8 [B, C, S, S], not normalised."""
    pixels, sizes = torch.from_numpy(images.batch(rows)), torch.from_numpy(images.sizes[rows])
    black, white = [0.0] * images.channels, [1.0] * images.channels  # as mean and standard deviation
    views = []
    for number, augmentation in enumerate(augmentations(config), start=1):
        params = sample_params(augmentation, sizes, images.channels, generator(config.seed, f"view {number}"))
        view = augment(pixels, params, config.image_size, mean=black, std=white)
        views.append((255 * view.clamp(0, 1)).round().byte().numpy())
    return views


def views_picture(images: ImageSet, config: PretrainConfig) -> np.ndarray:
    """Two views, one above the other, of random images, eight at most: uint8 [H, W, 3]."""
    rows = random_subset(len(images), PICTURED, config.seed).numpy()
    return np.asarray(grid(np.concatenate(two_views(images, rows, config)), len(rows)))
