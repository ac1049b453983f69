"""Pixels that stand for "nothing was measured here" in images of more than 8 bits."""

import numpy as np

SENTINELS = np.array([-9999, -99999, -32768, np.finfo(np.float32).min], dtype=np.float32)


def fill_nodata(pixels: np.ndarray, stated: float | None = None) -> tuple[np.ndarray, int]:
    """Give the pixels without data the least value of the others, so that they neither widen the range nor spread when
    the image is shrunk.

    Without data are NaN, the value that the file states, and the least value if it is a usual one for this
    (`SENTINELS`) and farther from the others than these are from each other.

    Args:
        pixels: float32 [C, H, W].
        stated: the value that the file says stands for no data, as GDAL's TIFF files do.

    Returns:
        The pixels and how many were without data; all of them if there are no others, and then as they came.
    """
    missing = np.isnan(pixels)
    if stated is not None:
        with np.errstate(over="ignore"):  # float64's least number is infinite here, in the pixels too
            missing |= pixels == np.float32(stated)
    if not missing.all():
        low = pixels[~missing].min() if missing.any() else pixels.min()
        if low in SENTINELS:
            rest = pixels[~missing & (pixels != low)]
            with np.errstate(over="ignore"):
                if rest.size and rest.min() - low > rest.max() - rest.min():
                    missing |= pixels == low
    count = int(missing.sum())
    if 0 < count < pixels.size:
        pixels = np.where(missing, pixels[~missing].min(), pixels)
    return pixels, count
