"""A sheet of images as an encoder sees them: cropped to a square, at its size."""

import numpy as np
import torch
from PIL import Image

from mocokit.data.sampler import random_subset
from mocokit.data.store import ImageSet
from mocokit.deploy.montage import picture
from mocokit.model.encoder import EncoderSpec

LINES, FEWEST = 8, 4  # of the sheet, with as many images each; of a sheet of large images
SIDE, LARGEST, GAP = 64, 1024, 2  # pixels: small images are enlarged to that; of the sheet; between images


def as_seen(images: ImageSet, rows: np.ndarray, spec: EncoderSpec) -> np.ndarray:
    """The images at ``rows`` [B] as the backbone gets them, but for the normalisation: uint8 [B, C, S, S]."""
    views = spec.view(torch.from_numpy(images.batch(rows)), torch.from_numpy(images.sizes[rows]))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return (255 * (views * std + mean).clamp(0, 1)).round().byte().numpy()


def contact_sheet(images: ImageSet, spec: EncoderSpec, seed: int) -> Image.Image:
    """Random images by ``seed``, 64 at most and 16 of large ones, in their order; small ones keep their pixels as
    squares."""
    size = spec.image_size * max(1, SIDE // spec.image_size)
    lines = min(LINES, max(FEWEST, LARGEST // size))
    pictures = as_seen(images, random_subset(len(images), lines**2, seed).numpy(), spec)
    across = min(lines, len(pictures))
    step, down = size + GAP, -(-len(pictures) // across)
    sheet = Image.new("RGB", (across * step - GAP, down * step - GAP), "white")
    for number, pixels in enumerate(pictures):
        y, x = divmod(number, across)
        sheet.paste(picture(pixels).resize((size, size), Image.Resampling.NEAREST), (x * step, y * step))
    return sheet
