"""Small pictures of images, as they stand in a page: WebP of about a kilobyte."""

import base64
import io

import numpy as np
from PIL import Image

from mocokit.deploy.montage import picture

SIDE, LARGER = 48, 76  # of the longer side, in pixels; of images that are shown without being asked for
QUALITY = 60


def thumbnail(pixels: np.ndarray, side: int = SIDE) -> str:
    """uint8 [C, H, W] as WebP in base64, its longer side at most ``side`` pixels."""
    image = picture(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(buffer.getvalue()).decode()
