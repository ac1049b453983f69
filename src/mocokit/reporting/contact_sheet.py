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
THUMBNAIL = 32  # pixels


def as_seen(images: ImageSet, rows: np.ndarray, spec: EncoderSpec) -> np.ndarray:
    """The images at ``rows`` [B] as the backbone gets them, but for the normalisation: uint8 [B, C, S, S]."""
    views = spec.view(torch.from_numpy(images.batch(rows)), torch.from_numpy(images.sizes[rows]))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return (255 * (views * std + mean).clamp(0, 1)).round().byte().numpy()


def thumbnails(images: ImageSet, rows: np.ndarray, spec: EncoderSpec) -> np.ndarray:
    """The images at ``rows`` [B] as the encoder sees them, shrunk: uint8 [B, S, S, 3]."""
    size = min(THUMBNAIL, spec.image_size)
    found = np.empty((len(rows), size, size, 3), np.uint8)
    for start in range(0, len(rows), LINES**2):
        for number, pixels in enumerate(as_seen(images, rows[start : start + LINES**2], spec), start):
            found[number] = np.asarray(picture(pixels).resize((size, size), Image.Resampling.LANCZOS))
    return found


def contact_sheet(images: ImageSet, spec: EncoderSpec, seed: int) -> Image.Image:
    """Random images by ``seed``, 64 at most and 16 of large ones, in their order."""
    lines = min(LINES, max(FEWEST, LARGEST // _shown(spec.image_size)))
    pixels = as_seen(images, random_subset(len(images), lines**2, seed).numpy(), spec)
    return grid(pixels, min(lines, len(pixels)))


def grid(pixels: np.ndarray, across: int) -> Image.Image:
    """Square images uint8 [N, C, S, S], so many in a line; small ones keep their pixels as squares."""
    size = _shown(pixels.shape[-1])
    step, down = size + GAP, -(-len(pixels) // across)
    sheet = Image.new("RGB", (across * step - GAP, down * step - GAP), "white")
    for number, image in enumerate(pixels):
        y, x = divmod(number, across)
        sheet.paste(picture(image).resize((size, size), Image.Resampling.NEAREST), (x * step, y * step))
    return sheet


def _shown(size: int) -> int:
    """Side of an image in a sheet."""
    return size * max(1, SIDE // size)
