"""The small images that a montage shows: of the rows of a feature file, and of queries that are image files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mocokit.data.decode import BadImage
from mocokit.data.decode_pool import Encoded, decode_for_model
from mocokit.data.sources import open_source, read_all
from mocokit.deploy.feature_file import printable
from mocokit.deploy.montage import TILE
from mocokit.errors import UserError
from mocokit.model.encoder import EncoderSpec


def images_of_rows(data: str, paths: list[str], spec: Any) -> dict[str, np.ndarray]:
    """The images at ``paths`` inside ``data``: uint8 [1 or 3, H, W]; ``spec`` as in `images_of_files`.

    Raises:
        UserError: an image is not there or can't be read.
    """
    source = open_source(data)
    index = {printable(name): i for i, name in enumerate(source.read_index().names)}
    for path in paths:
        if path not in index:
            raise UserError(f"--montage: no image {path} in {data}; name with --data where the images are now")
    return _decoded(read_all(source, [index[path] for path in paths]), paths, spec)


def images_of_files(files: list[str], spec: Any) -> dict[str, np.ndarray]:
    """Image files by name: uint8 [1 or 3, H, W], of more channels the first.

    Args:
        files: readable files.
        spec: the ``spec`` in the metadata of a feature file, which may be anything: channels and intensity range.

    Raises:
        UserError: a file is no image.
    """
    return _decoded((Path(file).read_bytes() for file in files), files, spec)


def _decoded(images: Iterable[Encoded], names: list[str], spec: Any) -> dict[str, np.ndarray]:
    channels, intensity_range = 3, None
    try:
        known = EncoderSpec.from_dict(spec)
        channels = 3 if known.channels in (1, 3) else known.channels
        intensity_range = known.intensity_range
    except (LookupError, TypeError, ValueError):
        pass  # not written by mocokit
    decoded = decode_for_model(images, image_size=TILE, channels=channels, intensity_range=intensity_range)
    found = {}
    for name, image in zip(names, decoded, strict=True):
        if isinstance(image, BadImage):
            raise UserError(f"--montage: {name}: {image}")
        found[name] = image if channels == 3 else image[:1]
    return found
