"""Tiles cover an image as documented: in a grid of equal parts, each pixel in one of them; names say where they are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.tiles import LEAST_SIDE, Grid, origin_of

lengths = st.integers(1, 3000)
sides = st.integers(LEAST_SIDE, 2000)


@given(lengths, lengths, sides)
def test_every_pixel_is_in_one_tile_and_tiles_are_equal_but_for_a_pixel(height: int, width: int, side: int):
    grid = Grid.of(height, width, side)
    boxes = [grid.box(number, height, width) for number in range(grid.rows * grid.columns)]
    for length, axis, parts in ((height, 0, grid.rows), (width, 1, grid.columns)):
        spans = sorted({(box[axis].start, box[axis].stop) for box in boxes})
        assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), length]  # no gap, no overlap
        widths = {stop - start for start, stop in spans}
        assert len(spans) == parts
        assert min(widths) >= 1
        assert max(widths) - min(widths) <= 1
    assert len(set(map(str, boxes))) == len(boxes) == grid.rows * grid.columns


@given(lengths, sides)
def test_no_other_grid_has_tiles_nearer_to_the_side(length: int, side: int):
    parts = Grid.of(length, 1, side).rows
    assert parts == max(1, int(length / side + 0.5))
    assert (parts == 1) == (2 * length < 3 * side)
    if parts > 1:
        assert 2 / 3 * side <= length / parts < 3 / 2 * side


@given(st.text(max_size=8), st.text(max_size=8), lengths, lengths, sides)
def test_names_are_unique_and_say_of_what_image_they_are(one: str, other: str, height: int, width: int, side: int):
    grid = Grid.of(height, width, max(side, 100))
    names = grid.names(one)
    assert len(set(names)) == grid.rows * grid.columns
    assert {origin_of(name) for name in names} == {one}
    assert one == other or not set(names) & set(grid.names(other))


def test_names_hold_row_and_column():
    assert Grid(2, 3).names("a/scan.png") == [f"a/scan.png#r{row}c{column}" for row in (0, 1) for column in (0, 1, 2)]
    assert origin_of("a/scan.png") == "a/scan.png"
    assert origin_of("a#r1.png") == "a#r1.png"
    assert origin_of("a.png#r0c0#r1c2") == "a.png#r0c0"
    assert origin_of("a#r0c0\n") == "a#r0c0\n"


def test_a_tile_is_the_slice_that_is_documented():
    image, grid = np.arange(7 * 10).reshape(7, 10), Grid(2, 3)
    rows, columns = grid.box(4, *image.shape)
    np.testing.assert_array_equal(image[rows, columns], image[7 // 2 : 7, 10 // 3 : 2 * 10 // 3])
