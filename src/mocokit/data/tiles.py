"""How a large image is cut into tiles, and what these are called."""

import re
from typing import NamedTuple

LEAST_SIDE = 16  # of a tile, in pixels; a smaller number is meant as one of tiles

_PLACE = re.compile(r"#r[0-9]+c[0-9]+\Z")


class Grid(NamedTuple):
    """So many ``rows`` and ``columns`` of tiles, which cover an image without gaps or overlap.

    Tiles are numbered from 0, row by row, and as equal as whole pixels allow: row r of R has the lines from
    r * height // R to (r + 1) * height // R of an image, and columns likewise.
    """

    rows: int
    columns: int

    @classmethod
    def of(cls, height: int, width: int, side: int) -> "Grid":
        """The grid whose tiles come nearest to ``side`` pixels: each side of the image by it, rounded, half up; one of
        less than one and a half times that is not cut."""
        return cls(*(max(1, (2 * length + side) // (2 * side)) for length in (height, width)))

    def box(self, number: int, height: int, width: int) -> tuple[slice, slice]:
        """The lines and columns of an image of that size that tile ``number`` has."""
        row, column = divmod(number, self.columns)
        lines = slice(row * height // self.rows, (row + 1) * height // self.rows)
        return lines, slice(column * width // self.columns, (column + 1) * width // self.columns)

    def names(self, image: str) -> list[str]:
        """The names of the tiles of an image: its own, then row and column from 0, as in ``scan.png#r0c3``."""
        return [f"{image}#r{row}c{column}" for row in range(self.rows) for column in range(self.columns)]


def origin_of(name: str) -> str:
    """The name of the image that a tile is of; other names are their own."""
    return _PLACE.sub("", name)
