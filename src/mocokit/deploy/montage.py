"""Montages of search results: each query with its neighbours, or pairs side by side; drawn by Pillow."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mocokit.data.decode_pool import Encoded, decode_for_model, read_all
from mocokit.data.image_index import Source
from mocokit.data.pillow import MAX_PIXELS, BadImage
from mocokit.errors import UserError
from mocokit.files import printable

TILE = 112  # side of the square that an image is fitted into
MAX_LINES, MAX_NEIGHBOURS, PAIRS_A_LINE = 50, 12, 4
_BORDER, _GAP, _CAPTION, _MARGIN = 4, 10, 20, 16
_OUTER = TILE + 2 * _BORDER
_GROUP_GAP = 26  # between a query and its neighbours, between pairs
_FONT_SIZE, _LEGEND = 13, 26
_PAPER, _INK, _FAINT, _MAT = "white", "#202020", "#767676", "#f2f2f2"
_QUERY, _SAME, _OTHER, _UNKNOWN = "#202020", "#0072B2", "#D55E00", "#c4c4c4"  # of Okabe and Ito: for all eyes


class Tile(NamedTuple):
    """An image uint8 [C, H, W], the caption below it, and the colour of its border."""

    pixels: np.ndarray
    caption: str
    border: str = _UNKNOWN


Line = list[list[Tile]]  # groups of tiles


def query_lines(
    queries: Sequence[Mapping[str, Any]], images: Mapping[str, np.ndarray], files: Mapping[str, np.ndarray]
) -> list[Line]:
    """A line for each of the ``queries`` of a search result: its image, and its neighbours with cosine and class.

    ``images`` of rows by path, ``files`` of the queries that are image files by name: uint8 [C, H, W].
    """
    lines = []
    for query in queries:
        own, label = query["row"] is None, query["label"]
        pixels = files[query["query"]] if own else images[query["path"]]
        name = query["query"].replace("\\", "/").rsplit("/", 1)[-1] if own else label or f"row {query['row']}"
        neighbours = []
        for n in query["neighbours"][:MAX_NEIGHBOURS]:
            border = _UNKNOWN if label is None or n["label"] is None else _SAME if n["label"] == label else _OTHER
            caption = f"{n['similarity']:.3f} {n['label'] or ''}".rstrip()
            neighbours.append(Tile(images[n["path"]], caption, border))
        lines.append([[Tile(pixels, name, _QUERY)], neighbours])
    return lines


def pair_lines(pairs: Sequence[Mapping[str, Any]], images: Mapping[str, np.ndarray]) -> list[Line]:
    """`PAIRS_A_LINE` of the ``duplicates`` of a search result to a line, with rows and cosine."""
    groups = [
        [
            Tile(images[pair["paths"][0]], f"row {pair['rows'][0]}"),
            Tile(images[pair["paths"][1]], f"{pair['similarity']:.3f} row {pair['rows'][1]}"),
        ]
        for pair in pairs
    ]
    return [groups[start : start + PAIRS_A_LINE] for start in range(0, len(groups), PAIRS_A_LINE)]


def draw(lines: Sequence[Line]) -> Image.Image:
    """An image of lines of groups of tiles, with a wider gap between groups; a legend where borders speak."""
    placed = []
    for number, line in enumerate(lines):
        left, top = _MARGIN, _MARGIN + number * (_OUTER + _CAPTION + _GAP)
        for group in line:
            for tile in group:
                placed.append((tile, left, top))
                left += _OUTER + _GAP
            left += _GROUP_GAP - _GAP
    speaks = any(tile.border in (_SAME, _OTHER) for tile, _, _ in placed)
    width = max(left for _, left, _ in placed) + _OUTER + _MARGIN
    height = max(top for _, _, top in placed) + _OUTER + _CAPTION + speaks * _LEGEND + _MARGIN
    montage = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(montage)
    pen.font = ImageFont.load_default(_FONT_SIZE)
    for tile, left, top in placed:
        pen.rectangle((left, top, left + _OUTER - 1, top + _OUTER - 1), _MAT, tile.border, _BORDER)
        image = fitted(tile.pixels)
        montage.paste(image, (left + (_OUTER - image.width) // 2, top + (_OUTER - image.height) // 2))
        ink = _FAINT if tile.border == _UNKNOWN else _INK
        pen.text((left + _OUTER / 2, top + _OUTER + 3), _shortened(tile.caption, pen), ink, anchor="ma")
    if speaks:
        _draw_legend(pen, _MARGIN, height - _MARGIN - _FONT_SIZE)
    return montage


def picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] as RGB: of one channel gray, of any number but three the first."""
    plane = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    return Image.fromarray(np.ascontiguousarray(plane)).convert("RGB")


def fitted(pixels: np.ndarray) -> Image.Image:
    """[C, H, W] as RGB, its longer side `TILE` long: small images keep their pixels as squares."""
    image = picture(pixels)
    scale = TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _shortened(text: str, pen: ImageDraw.ImageDraw) -> str:
    text = " ".join(text.split())
    if pen.textlength(text) <= _OUTER:
        return text
    while text and pen.textlength(text + "…") > _OUTER:
        text = text[:-1]
    return text + "…"


def _draw_legend(pen: ImageDraw.ImageDraw, left: float, top: int) -> None:
    for colour, text in ((_SAME, "same class as the query"), (_OTHER, "another class")):
        pen.rectangle((left, top, left + _FONT_SIZE, top + _FONT_SIZE), fill=colour)
        pen.text((left + _FONT_SIZE + 6, top - 1), text, _INK)
        left += _FONT_SIZE + 6 + pen.textlength(text) + 24


def images_of_rows(data: str, source: Source, paths: list[str], spec: Any) -> dict[str, np.ndarray]:
    """The images at ``paths`` inside ``data``, which is ``source``, as `images_of_files`; one that is not there raises
    a UserError."""
    index = {printable(name): i for i, name in enumerate(source.read_index().names)}
    for path in paths:
        if path not in index:
            raise UserError(f"--montage: no image {path} in {data}; name with --data where the images are now")
    return _decoded(read_all(source, [index[path] for path in paths]), paths, spec, source.max_pixels)


def images_of_files(files: list[str], spec: Any) -> dict[str, np.ndarray]:
    """Image files by name: uint8 [1 or 3, H, W], of more channels the first. What is no image raises a UserError.

    ``spec`` is that in the metadata of a feature file, which may be anything: channels and intensity range.
    """
    return _decoded((Path(file).read_bytes() for file in files), files, spec)


def _decoded(
    images: Iterable[Encoded], names: list[str], spec: Any, max_pixels: int = MAX_PIXELS
) -> dict[str, np.ndarray]:
    from mocokit.model.encoder import EncoderSpec  # takes seconds, and most searches draw nothing

    try:
        known = EncoderSpec.from_dict(spec)
        channels, intensity_range = 3 if known.channels == 1 else known.channels, known.intensity_range
    except (LookupError, TypeError, ValueError):  # not written by mocokit
        channels, intensity_range = 3, None
    decoded = decode_for_model(
        images, image_size=TILE, channels=channels, intensity_range=intensity_range, max_pixels=max_pixels
    )
    found = {}
    for name, image in zip(names, decoded, strict=True):
        if isinstance(image, BadImage):
            raise UserError(f"--montage: {name}: {image}")
        found[name] = image if channels == 3 else image[:1]
    return found
