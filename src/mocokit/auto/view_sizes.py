"""The sizes that views have in the course of a run: small ones first, which are fast (progressive resizing)."""

import math
from collections.abc import Mapping

from mocokit.config import PretrainConfig

VIEW_STEP, VIEW_STEPS = 4, 4  # pixels by which views grow, or a multiple of it; how often at most


def view_sizes(start: int, end: int) -> list[int]:
    """The sides that views have in turn: at most `VIEW_STEPS` equal steps, multiples of `VIEW_STEP`, but the last."""
    growth = VIEW_STEP * max(1, math.ceil((end - start) / (VIEW_STEP * VIEW_STEPS)))
    return [*range(start, end, growth), end]


def view_size_at(step: float, steps: int, start: int, end: int) -> int:
    """Side of the views of a step, from 0: that of `view_sizes` which is nearest to a line."""
    sizes = view_sizes(start, end)
    return sizes[round((len(sizes) - 1) * step / steps)]


def mean_over_views(times: Mapping[int, float], config: PretrainConfig) -> float:
    """Mean over the steps of a run, of which those with views of each size take ``times``."""
    first, *others = (times[size] for size in view_sizes(config.view_size, config.view_size_end))
    if not others:
        return first
    *between, last = others
    return (first / 2 + sum(between) + last / 2) / len(others)
