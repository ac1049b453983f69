"""The picture: pixels stay what they were, borders say what captions say, and images are those that are named."""

import numpy as np
import pytest
from PIL import Image

from mocokit.data.sources import open_source
from mocokit.deploy import montage
from mocokit.deploy.montage import TILE, Tile, draw, fitted, images_of_files, images_of_rows, pair_lines, query_lines
from mocokit.errors import UserError
from mocokit.model.encoder import EncoderSpec
from tests.helpers import encode, noise

BLUE, ORANGE, GRAY, BLACK = (0, 114, 178), (213, 94, 0), (196, 196, 196), (32, 32, 32)


def image(seed=0, height=8, width=8, channels=3):
    pixels = noise(seed, height, width, channels)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def neighbour(row, label, similarity=0.5):
    return {"row": row, "path": f"{row}.png", "label": label, "similarity": similarity}


def colours(picture: Image.Image) -> set:
    return {colour for _, colour in picture.getcolors(picture.width * picture.height)}


def borders(picture: Image.Image, tiles: int) -> list:
    """The colours of the upper left corners of tiles along the first line."""
    row = [picture.getpixel((x, 16)) for x in range(picture.width)]
    starts = [x for x in range(1, len(row)) if row[x] != (255, 255, 255) and row[x - 1] == (255, 255, 255)]
    assert len(starts) == tiles
    return [row[x] for x in starts]


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_keep_their_pixels_as_squares(channels):
    pixels = image(channels=channels, height=7, width=7)
    scale = TILE // 7
    enlarged = np.asarray(fitted(pixels)).transpose(2, 0, 1)
    assert enlarged.shape == (3, TILE, TILE)
    assert np.array_equal(enlarged, np.repeat(np.repeat(np.broadcast_to(pixels, (3, 7, 7)), scale, 1), scale, 2))


@pytest.mark.parametrize(
    ("size", "expected"), [((30, 60), (TILE // 2, TILE)), ((500, 250), (TILE, TILE // 2)), ((1, 900), (1, TILE))]
)
def test_the_aspect_ratio_stays(size, expected):
    assert fitted(image(0, *size)).size == expected[::-1]


def test_borders_tell_classes():
    query = {"query": "3", "row": 3, "path": "3.png", "label": "cat"}
    query["neighbours"] = [neighbour(1, "cat"), neighbour(2, "dog"), neighbour(4, None)]
    images = {f"{row}.png": image(row) for row in (1, 2, 3, 4)}
    picture = draw(query_lines([query], images, {}))
    assert borders(picture, 4) == [BLACK, BLUE, ORANGE, GRAY]
    unknown = query | {"row": None, "label": None, "query": "a/b.png"}
    picture = draw(query_lines([unknown], images, {"a/b.png": image(9)}))
    assert borders(picture, 4) == [BLACK, GRAY, GRAY, GRAY]
    assert not {BLUE, ORANGE} & colours(picture)  # nor a legend of them


def test_captions():
    query = {"query": "3", "row": 3, "path": "3.png", "label": None, "neighbours": [neighbour(1, "cat", 0.98765)]}
    ((own, nearest),) = query_lines([query], {f"{row}.png": image(row) for row in (1, 3)}, {})
    assert [tile.caption for tile in own + nearest] == ["row 3", "0.988 cat"]
    file = query | {"query": r"C:\pictures\my cat.png", "row": None, "path": None}
    ((own, _),) = query_lines([file], {"1.png": image()}, {file["query"]: image()})
    assert own[0].caption == "my cat.png"


def test_long_captions_are_cut_and_any_character_can_be_drawn():
    tiles = [Tile(image(), text) for text in ("x" * 500, "日本語 \u0301 \n two", "")]
    single = draw([[[Tile(image(), "x")]]])
    assert draw([[[tile] for tile in tiles]]).height == single.height


def test_pairs_share_lines():
    pairs = [{"rows": [i, i + 1], "paths": [f"{i}", f"{i + 1}"], "similarity": 0.999} for i in range(9)]
    lines = pair_lines(pairs, {str(i): image(i) for i in range(10)})
    assert [len(line) for line in lines] == [4, 4, 1]
    assert [tile.caption for tile in lines[2][0]] == ["row 8", "0.999 row 9"]
    picture = draw(lines)
    assert borders(picture, 8) == [GRAY] * 8


def test_many_neighbours_are_not_all_drawn():
    query = {"query": "0", "row": 0, "path": "0.png", "label": None}
    query["neighbours"] = [neighbour(0, None)] * 500
    ((_, nearest),) = query_lines([query], {"0.png": image()}, {})
    assert len(nearest) == montage.MAX_NEIGHBOURS


# The images that are drawn ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encode(noise(i, 6, 7)))
    return tmp_path


def test_images_of_rows(folder):
    images = images_of_rows(str(folder), open_source(str(folder)), ["3.png", "1.png"], None)
    assert list(images) == ["3.png", "1.png"]
    for i in (1, 3):
        assert np.array_equal(images[f"{i}.png"], noise(i, 6, 7).transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"no image 7\.png in .*--data"):
        images_of_rows(str(folder), open_source(str(folder)), ["7.png"], None)


@pytest.mark.parametrize("spec", [None, {}, 7, {"channels": "x"}])
def test_a_spec_from_elsewhere_does_no_harm(folder, spec):
    assert images_of_files([str(folder / "0.png")], spec)[str(folder / "0.png")].shape == (3, 6, 7)


def test_large_images_are_shrunk_and_gray_ones_drawn(folder):
    spec = EncoderSpec("resnet18_narrow", 8, 1, (0.5,), (0.5,)).to_dict()
    (folder / "0.png").write_bytes(encode(noise(0, 300, 600, channels=1)))
    (image,) = images_of_files([str(folder / "0.png")], spec).values()
    assert image.shape == (3, TILE, 2 * TILE)


def test_what_is_no_image_is_named(folder):
    (folder / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"--montage: .*0\.png: "):
        images_of_files([str(folder / "0.png")], None)
