"""How many channels the images of a set are kept with: gray, colour, or as many as most have."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

COLOUR_SHARE = 0.01  # of gray and colour images together: where fewer have colour, all are gray


def is_gray(pixels: np.ndarray) -> bool:
    """Whether an image [C, H, W] shows gray alone: it has one channel, or three that are equal."""
    return len(pixels) == 1 or (len(pixels) == 3 and bool((pixels[1:] == pixels[0]).all()))


def common_channels(channels: Sequence[int], gray: Sequence[bool]) -> int:
    """The most frequent number of ``channels``, where 1 and 3 count together: as 3 if at least a hundredth of these
    images has colour, else as 1. ``gray`` says of each image whether it `is_gray`."""
    counts = Counter(channels)
    either = counts.pop(1, 0) + counts.pop(3, 0)
    coloured = sum(number == 3 and not is_gray for number, is_gray in zip(channels, gray, strict=True))
    if either:
        counts[3 if coloured and coloured >= COLOUR_SHARE * either else 1] = either
    return max(counts, key=lambda number: (counts[number], number), default=3)


def about_colour(channels: Sequence[int], gray: Sequence[bool], names: Sequence[str], kept: int) -> list[str]:
    """A line that names the few images of another kind than the others, if ``kept`` channels are 1 or 3; or none."""
    found = [(name, is_gray) for number, is_gray, name in zip(channels, gray, names, strict=True) if number in (1, 3)]
    coloured = [name for name, is_gray in found if not is_gray]
    if kept not in (1, 3) or not coloured or 2 * len(coloured) > len(found):
        return []
    few = f"{len(coloured):,} of {len(found):,} images {'has' if len(coloured) == 1 else 'have'} colour"
    if kept == 1:
        return [f"{few}, under 1 %, so all are kept as gray; the first is {coloured[0]}"]
    return [f"{few}, so all are kept as colour; the first is {coloured[0]}; without them the set would be gray"]
