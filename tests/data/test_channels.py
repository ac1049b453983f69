"""Gray stays gray beside a few colour images, and is colour beside more; few images of another kind are named."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.channels import about_colour, common_channels, is_gray

KINDS = st.tuples(st.sampled_from([1, 2, 3, 5]), st.booleans()).map(lambda kind: (kind[0], kind[1] or kind[0] == 1))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.zeros((1, 2, 3)), True),
        (np.zeros((3, 2, 3)), True),
        (np.zeros((5, 2, 3)), False),
        (np.arange(6).reshape(1, 2, 3).repeat(3, axis=0), True),
        (np.arange(6).reshape(1, 2, 3).repeat(2, axis=0), False),
    ],
)
def test_equal_channels_are_gray(pixels, expected):
    assert is_gray(pixels) == expected


@pytest.mark.parametrize("place", [(channel, y, x) for channel in range(3) for y in (0, 3) for x in (0, 4)])
def test_one_pixel_of_colour_is_colour(place):
    pixels = np.full((3, 4, 5), 7, np.uint8)
    pixels[place] = 8
    assert not is_gray(pixels)


@given(st.lists(KINDS, min_size=1, max_size=30))
def test_the_most_frequent_wins(kinds):
    """Among so few, one coloured image is more than a hundredth."""
    kept = common_channels([number for number, _ in kinds], [gray for _, gray in kinds])
    group = Counter("gray or colour" if number in (1, 3) else number for number, _ in kinds)
    own = "gray or colour" if kept in (1, 3) else kept
    assert group[own] == max(group.values())
    if kept in (1, 3):
        assert (kept == 3) == any(number == 3 and not gray for number, gray in kinds)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 8))
def test_a_hundredth_decides(one_channel, three_equal, coloured):
    """Whether gray images are stored with one channel or with three makes no difference."""
    total = one_channel + three_equal + coloured
    if not total:
        assert common_channels([], []) == 3
        return
    channels = [1] * one_channel + [3] * (three_equal + coloured)
    gray = [True] * (one_channel + three_equal) + [False] * coloured
    kept = common_channels(channels, gray)
    assert kept == (3 if coloured and 100 * coloured >= total else 1)
    names = [f"{number}.png" for number in range(total)]
    lines = about_colour(channels, gray, names, kept)
    assert bool(lines) == (0 < 2 * coloured <= total)
    for line in lines:
        assert line.startswith(f"{coloured:,} of {total:,} images ha")
        assert f"first is {one_channel + three_equal}.png" in line
        assert ("kept as gray" in line) == (kept == 1)


def test_nothing_is_said_of_many_channels():
    assert about_colour([5, 5, 3, 1], [False, False, False, True], list("abcd"), 5) == []
