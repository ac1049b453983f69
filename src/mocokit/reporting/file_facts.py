"""Facts of image files from their headers alone: format, size, JPEG quality, camera and date."""

import io
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from mocokit.console import progress
from mocokit.data.decode import image_size
from mocokit.data.decode_pool import Encoded, ImageFile, read_all
from mocokit.data.image_index import Source
from mocokit.data.pillow import FORMATS, MAX_PIXELS, BadImage, translated_errors
from mocokit.data.sampler import random_subset
from mocokit.data.tiles import origin_of
from mocokit.files import printable
from mocokit.reporting.images import ReportImages

MOST = 4000  # images that are looked at
BLOCKS = 32  # that these may be in: a block of a shard (row group, or of a tar) is read as a whole
MOST_LETTERS = 60  # of a camera's name
# Luminance (ITU-T T.81, table K.1), row by row.
_STANDARD = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)


def _scaled(quality: int, most: int) -> tuple[int, ...]:
    """The table that IJG's libjpeg makes for a quality (jcparam.c: jpeg_quality_scaling, jpeg_add_quant_table)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(np.clip((_STANDARD * scale + 50) // 100, 1, most).tolist())


# Numbers are of eight bits in baseline files, else of fifteen.
_QUALITIES = {_scaled(quality, most): quality for quality in range(1, 101) for most in (32767, 255)}


class FileFacts(NamedTuple):
    """What the header of a file says; None is what it does not say, or all if there is no file, or a damaged one.

    ``size`` are width and height in pixels as stored, before the EXIF orientation; ``quality`` that of a JPEG file, 1
    to 100, if its luminance table is the standard one, scaled as IJG's libjpeg does; ``camera`` make and model and
    ``taken`` the time by EXIF, as the camera's clock had it.
    """

    format: str | None = None
    size: tuple[int, int] | None = None
    quality: int | None = None
    camera: str | None = None
    taken: datetime | None = None


def read_facts(source: Source, images: ReportImages, seed: int) -> dict[int, FileFacts]:
    """Facts by row of ``images``, of a random choice of at most 4,000 by ``seed``, in ascending order; no pixels are
    decoded. Those of a tile are its image's.

    Of shards those rows are from 32 random blocks at most. ``source`` is what the images were stored from; if it holds
    pixels, or an image is no longer there, there are no facts.

    Raises:
        UserError: the source cannot be listed any more, or a shard cannot be read.
    """
    if source.decoded:
        return dict.fromkeys(random_subset(len(images), MOST, seed).tolist(), FileFacts())
    image_index = source.read_index()
    paths = [origin_of(part.images.names[row]) for part in images.parts for row in part.indices.tolist()]
    wanted = set(paths)
    positions = {name: position for position, name in enumerate(image_index.names) if name in wanted}
    rows = _choice(np.array([positions.get(path, -1) for path in paths]), image_index.blocks, seed).tolist()
    facts = dict.fromkeys(rows, FileFacts())
    there = [row for row in rows if paths[row] in positions]
    files = read_all(source, [positions[paths[row]] for row in there])
    with progress("reading headers of files") as report:
        for done, (row, file) in enumerate(zip(there, files, strict=True), 1):
            facts[row] = facts_of(file, source.max_pixels)
            report(done, len(there))
    return facts


def _choice(positions: np.ndarray, blocks: np.ndarray | None, seed: int) -> Tensor:
    """At most `MOST` rows, ascending, of images at ``positions`` [N] of an index; -1 is none."""
    rows = torch.arange(len(positions))
    if blocks is not None:
        block = torch.from_numpy(np.where(positions < 0, -1, blocks[positions]))
        found = block.unique()
        rows = torch.isin(block, found[random_subset(len(found), BLOCKS, seed)]).nonzero().squeeze(1)
    return rows[random_subset(len(rows), MOST, seed)]


def facts_of(file: Encoded, max_pixels: int = MAX_PIXELS) -> FileFacts:
    """Facts of one file; none of pixels, or if it is damaged, not an image, or of more than twice ``max_pixels``."""
    with suppress(BadImage):
        if isinstance(file, ImageFile):
            with file.open() as stream:
                return _read(stream, max_pixels)
        if isinstance(file, bytes):
            return _read(io.BytesIO(file), max_pixels)
    return FileFacts()


def _read(file: BinaryIO, max_pixels: int) -> FileFacts:
    with translated_errors(max_pixels):
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            file.seek(0)
            height, width = image_size(file.read())  # of TIFF files that Pillow does not know, else BadImage
            return FileFacts("TIFF", _known((width, height)))
        kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG file with a second picture behind
        quality = _QUALITIES.get(tuple(getattr(image, "quantization", {}).get(0, ())))
        return FileFacts(kind, _known(image.size), quality, *_exif(image))


def _known(size: tuple[int, int]) -> tuple[int, int] | None:
    """None of an image without pixels, which is a damaged one."""
    return size if min(size) > 0 else None


def _exif(image: Image.Image) -> tuple[str | None, datetime | None]:
    """Camera and time; None where a block is damaged or says neither."""
    camera = taken = None
    with suppress(Exception):
        exif = Image.Image.getexif(image)  # that of PNG files would decode the pixels
        make, model = (_text(exif.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        camera = model if model.lower().startswith(make.lower()) else f"{make} {model}".rstrip()
        inside = exif.get_ifd(ExifTags.IFD.Exif)
        stated = [inside.get(tag) for tag in (ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized)]
        for text in (*stated, exif.get(ExifTags.Base.DateTime)):
            with suppress(ValueError):
                taken = taken or datetime.strptime(_text(text), "%Y:%m:%d %H:%M:%S")
    return camera or None, taken


def _text(value: Any) -> str:
    """One short line, empty if there is no text."""
    words = value.split() if isinstance(value, str) else []
    return printable("".join(filter(str.isprintable, " ".join(words)))[:MOST_LETTERS].strip())
