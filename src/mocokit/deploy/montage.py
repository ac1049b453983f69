"""Montages of search results: each query with its neighbours, or pairs side by side; drawn by Pillow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 112  # side of the square that an image is fitted into
MAX_LINES, MAX_NEIGHBOURS, PAIRS_A_LINE = 50, 12, 4
_BORDER, _GAP, _CAPTION, _MARGIN = 4, 10, 20, 16
_GROUP_GAP = 26  # between a query and its neighbours, between pairs
_FONT_SIZE, _LEGEND = 13, 26
_PAPER, _INK, _FAINT, _MAT = "white", "#202020", "#767676", "#f2f2f2"
_QUERY, _SAME, _OTHER, _UNKNOWN = "#202020", "#0072B2", "#D55E00", "#c4c4c4"  # of Okabe and Ito: for all eyes


@dataclass(frozen=True)
class Tile:
    """An image uint8 [C, H, W], the caption below it, and its border.

    ``same`` tells whether its class is the query's; None if that is unknown. A query has a border of its own.
    """

    pixels: np.ndarray
    caption: str
    same: bool | None = None
    query: bool = False


Line = list[list[Tile]]  # groups of tiles


def query_lines(
    queries: Sequence[Mapping[str, Any]], images: Mapping[str, np.ndarray], files: Mapping[str, np.ndarray]
) -> list[Line]:
    """A line for each query: its image, and its neighbours with cosine and class.

    Args:
        queries: the ``queries`` of a search result.
        images: of the rows, by path; uint8 [C, H, W].
        files: of the queries that are image files, by name.
    """
    lines = []
    for query in queries:
        own, label = query["row"] is None, query["label"]
        pixels = files[query["query"]] if own else images[query["path"]]
        name = query["query"].replace("\\", "/").rsplit("/", 1)[-1] if own else label or f"row {query['row']}"
        neighbours = [
            Tile(
                images[n["path"]],
                f"{n['similarity']:.3f}" + (f" {n['label']}" if n["label"] else ""),
                same=None if label is None or n["label"] is None else n["label"] == label,
            )
            for n in query["neighbours"][:MAX_NEIGHBOURS]
        ]
        lines.append([[Tile(pixels, name, query=True)], neighbours])
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
    font = ImageFont.load_default(_FONT_SIZE)
    line_height = TILE + 2 * _BORDER + _CAPTION + _GAP
    speaks = any(tile.same is not None for line in lines for group in line for tile in group)
    width = 2 * _MARGIN + max(map(_width, lines))
    height = 2 * _MARGIN + len(lines) * line_height - _GAP + speaks * _LEGEND
    montage = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(montage)
    for number, line in enumerate(lines):
        left, top = _MARGIN, _MARGIN + number * line_height
        for group in line:
            for tile in group:
                _draw_tile(montage, pen, tile, left, top, font)
                left += TILE + 2 * _BORDER + _GAP
            left += _GROUP_GAP - _GAP
    if speaks:
        _draw_legend(pen, _MARGIN, height - _MARGIN - _FONT_SIZE, font)
    return montage


def _width(line: Line) -> int:
    tiles = sum(len(group) for group in line)
    return tiles * (TILE + 2 * _BORDER + _GAP) - _GAP * len(line) + _GROUP_GAP * (len(line) - 1)


def _draw_tile(
    montage: Image.Image,
    pen: ImageDraw.ImageDraw,
    tile: Tile,
    left: int,
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    colour = _QUERY if tile.query else {True: _SAME, False: _OTHER, None: _UNKNOWN}[tile.same]
    outer = TILE + 2 * _BORDER
    pen.rectangle((left, top, left + outer - 1, top + outer - 1), fill=_MAT, outline=colour, width=_BORDER)
    image = fitted(tile.pixels)
    montage.paste(image, (left + (outer - image.width) // 2, top + (outer - image.height) // 2))
    ink = _INK if tile.query or tile.same is not None else _FAINT
    pen.text((left + outer / 2, top + outer + 3), _shortened(tile.caption, outer, font), ink, font, anchor="ma")


def fitted(pixels: np.ndarray) -> Image.Image:
    """[C, H, W] as RGB, its longer side `TILE` long: small images keep their pixels as squares."""
    plane = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    image = Image.fromarray(np.ascontiguousarray(plane)).convert("RGB")
    scale = TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _draw_legend(
    pen: ImageDraw.ImageDraw, left: float, top: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    for colour, text in ((_SAME, "same class as the query"), (_OTHER, "another class")):
        pen.rectangle((left, top, left + _FONT_SIZE, top + _FONT_SIZE), fill=colour)
        pen.text((left + _FONT_SIZE + 6, top - 1), text, _INK, font)
        left += _FONT_SIZE + 6 + font.getlength(text) + 24
