"""Pixels without data neither widen the range nor become values of their own."""

import numpy as np
import pytest

from mocokit.data.nodata import fill_nodata

HEIGHTS = np.linspace(200, 250, 24, dtype=np.float32).reshape(1, 4, 6)


@pytest.mark.parametrize("value", [np.nan, -9999, -99999, -32768, np.finfo(np.float32).min])
def test_usual_values_are_filled_with_the_least_of_the_others(value: float) -> None:
    pixels = HEIGHTS.copy()
    pixels[0, 1:3, 2] = value
    filled, count = fill_nodata(pixels)
    assert count == 2
    np.testing.assert_array_equal(filled, np.where(pixels == HEIGHTS, HEIGHTS, np.float32(200)))


def test_a_stated_value_is_filled_wherever_it_lies() -> None:
    filled, count = fill_nodata(HEIGHTS, float(HEIGHTS[0, 3, 5]))
    assert count == 1
    assert filled.max() == HEIGHTS[0, 3, 4]
    lowest = HEIGHTS.copy()
    lowest[0, 0, 0] = -np.inf  # what is left of float64's least number
    assert fill_nodata(lowest, float(np.finfo(np.float64).min))[1] == 1


def test_measured_values_stay() -> None:
    depths = np.linspace(-9999, 8000, 24, dtype=np.float32).reshape(1, 4, 6)  # the sea's, by chance
    filled, count = fill_nodata(depths)
    assert count == 0
    assert filled is depths
    assert fill_nodata(HEIGHTS)[1] == 0
    assert fill_nodata(np.full((1, 2, 2), -9999, np.float32))[1] == 0  # constant: nothing to tell it by


def test_nothing_but_missing_pixels_is_told() -> None:
    assert fill_nodata(np.full((1, 2, 3), np.nan, np.float32))[1] == 6
    assert fill_nodata(np.full((1, 2, 3), 7, np.float32), 7)[1] == 6
