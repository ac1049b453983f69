"""The tiles of a source's images, themselves a source: what comes after knows nothing of how they were cut."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from mocokit.data.decode import image_size
from mocokit.data.decode_pool import Encoded, Tiles, decode_tiles, read_all
from mocokit.data.image_index import ImageIndex, Skipped, Source
from mocokit.data.notes import count
from mocokit.data.pillow import BadImage
from mocokit.data.tiles import Grid


class TiledSource:
    """The images of ``source``, each cut into tiles of about ``side`` by ``side`` pixels (`Grid.of`).

    A tile has the split and the label of its image, and is named after it (`Grid.names`). Tiles of an image are best
    read together: it is decoded whole, once for all of them that are asked for one after the other.
    """

    def __init__(self, source: Source, side: int) -> None:
        self.source, self.side = source, side
        self.name, self.decoded, self.max_pixels = source.name, source.decoded, source.max_pixels

    def fingerprint(self) -> str:
        return f"tiles/{self.side}/{self.source.fingerprint()}"

    def read_index(self) -> ImageIndex:
        """List the tiles, by the sizes in the headers of the images; those without a legible one are refused."""
        whole = self.source.read_index()
        rows = np.sort(np.concatenate(list(whole.splits.values())))
        images, sizes, refused = list[int](), list[tuple[int, int]](), list[Skipped]()
        for row, image in zip(rows.tolist(), read_all(self.source, rows.tolist()), strict=True):
            try:
                sizes.append(size_of(image, self.max_pixels))
                images.append(row)
            except BadImage as error:
                refused.append(Skipped(whole.names[row], str(error)))
        self._images, self._sizes = images, sizes
        self._grids = [Grid.of(*size, self.side) for size in sizes]
        counts = np.array([grid.rows * grid.columns for grid in self._grids], dtype=np.int64)
        self._image_of = np.repeat(np.arange(len(images)), counts)  # of each tile, the position in the lists above
        self._firsts = np.cumsum(counts) - counts
        row_of = np.array(images, dtype=np.int64)[self._image_of]
        names = [whole.names[row] for row in images]
        return replace(
            whole,
            names=[tile for name, grid in zip(names, self._grids, strict=True) for tile in grid.names(name)],
            splits={split: np.flatnonzero(np.isin(row_of, rows)) for split, rows in whole.splits.items()},
            labels=None if whole.labels is None else whole.labels[row_of],
            refused=[*whole.refused, *refused],
            notes=(*whole.notes, self._note(counts)),
            blocks=self._image_of if whole.blocks is None else whole.blocks[row_of],
        )

    def read_together(self, indices: Iterable[int]) -> Iterator[Tiles]:
        """The tiles at ``indices``, those of one image that follow each other as one."""
        group = list[int]()
        for index in indices:
            image = int(self._image_of[index])
            if group and (image != self._image_of[group[0]] or len(group) == np.prod(self._grids[image])):
                yield self._tiles(group)
                group = []
            group.append(index)
        if group:
            yield self._tiles(group)

    def read(self, index: int) -> np.ndarray:
        ((pixels, _),) = decode_tiles(self._tiles([index]), None, self.max_pixels)
        if isinstance(pixels, BadImage):
            raise pixels
        return pixels

    def _tiles(self, indices: list[int]) -> Tiles:
        """Tiles of one image."""
        image = int(self._image_of[indices[0]])
        (content,) = read_all(self.source, [self._images[image]])
        assert not isinstance(content, Tiles)
        numbers = [index - int(self._firsts[image]) for index in indices]
        return Tiles(content, self._sizes[image], self._grids[image], numbers)

    def _note(self, counts: np.ndarray) -> str:
        """How many tiles there are, and of what size."""
        cut = counts > 1
        if not cut.any():
            return f"no image is large enough to be cut into tiles of {self.side} pixels"
        sizes = np.repeat((np.array(self._sizes) / np.array(self._grids))[cut], counts[cut], axis=0)
        height, width = np.median(sizes, axis=0)
        rest = "" if cut.all() else "; the others are smaller, and one tile each"
        return (
            f"{cut.sum():,} of {count(len(cut), 'image is', 'images are')} cut into {len(sizes):,} tiles of about "
            f"{height:.0f} x {width:.0f} pixels{rest}"
        )


def size_of(image: Encoded, max_pixels: int) -> tuple[int, int]:
    """(height, width) in pixels, by the header alone, of tiles those of the first; may raise BadImage."""
    if isinstance(image, BadImage):
        raise image
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[2]
    if isinstance(image, Tiles):
        lines, columns = image.grid.box(image.numbers[0], *image.size)
        return lines.stop - lines.start, columns.stop - columns.start
    if isinstance(image, bytes):
        return image_size(image, max_pixels)
    with image.open() as file:
        return image_size(file, max_pixels)
