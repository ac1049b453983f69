"""A source of tiles gives what slices of the decoded images are, under names, labels and splits of their images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mocokit.data import decode_pool
from mocokit.data.build import median_side
from mocokit.data.decode import decode
from mocokit.data.decode_pool import Tiles, decode_all, read_all
from mocokit.data.labelled import grouped, open_labelled
from mocokit.data.labels_file import LabelsFile, read_labels
from mocokit.data.pillow import BadImage, shrink
from mocokit.data.sources import open_source
from mocokit.data.store import Store, TooManySkipped, open_store
from mocokit.data.streaming import StreamingDataset, open_streaming
from mocokit.data.tiled import TiledSource, size_of
from mocokit.data.tiles import Grid, origin_of
from mocokit.errors import UserError
from mocokit.evaluation.splits import NotSplit, split_labelled
from tests.helpers import archive, encode, noise, png16, png_header, write_images

SIDE = 16
LARGE = 1000  # of what is stored: nothing is shrunk


def tiled(path: Path | str, side: int = SIDE) -> TiledSource:
    source = open_source(str(path), tiles=side)
    assert isinstance(source, TiledSource)
    return source


def slices(pixels: np.ndarray, side: int = SIDE) -> list[np.ndarray]:
    """The tiles of an image [C, H, W], as documented."""
    height, width = pixels.shape[1:]
    rows, columns = (max(1, int(length / side + 0.5)) for length in (height, width))
    return [
        pixels[:, r * height // rows : (r + 1) * height // rows, c * width // columns : (c + 1) * width // columns]
        for r in range(rows)
        for c in range(columns)
    ]


def stored(store: Store, split: str = "train") -> dict[str, np.ndarray]:
    images = store.splits[split]
    return {
        name: images.batch([row])[0, :, : images.sizes[row, 0], : images.sizes[row, 1]]
        for row, name in enumerate(images.names)
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4), st.sampled_from([4, LARGE]))
def test_stored_tiles_are_slices_of_the_images(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], image_size: int
):
    folder = tmp_path_factory.mktemp("images")
    expected = {}
    for number, (height, width) in enumerate(sizes):
        pixels = noise(number, height, width)
        (folder / f"{number}.png").write_bytes(encode(pixels))
        cut = slices(pixels.transpose(2, 0, 1))
        names = Grid.of(height, width, SIDE).names(f"{number}.png")
        expected |= dict(zip(names, (shrink(tile, 2 * image_size) for tile in cut), strict=True))
    found = stored(open_store(tiled(folder), image_size=image_size, workers=0, channels=3))
    assert list(found) == list(expected)
    for name, pixels in found.items():
        np.testing.assert_array_equal(pixels, expected[name])


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_an_archive_give_the_same(tmp_path: Path, workers: int):
    folder = write_images(tmp_path / "data", [f"{number}.png" for number in range(8)], 90, 70)
    (folder / "broken.png").write_bytes(encode(noise(0, 90, 70))[:-3000])
    plain = open_store(tiled(folder), image_size=8, workers=0, max_skipped=0.5)
    for number, path in enumerate((folder, archive(folder, tmp_path / "data.zip"))):
        cache = tmp_path / f"cache {number}"
        cache.mkdir(exist_ok=True)
        options: dict[str, Any] = {"cache": cache, "workers": workers}
        store = open_store(tiled(path), image_size=8, max_skipped=0.5, **options)
        assert not store.from_cache
        assert store.fingerprint == plain.fingerprint
        assert store.splits["train"].names == plain.splits["train"].names
        assert [skipped.name for skipped in store.skipped] == Grid(6, 4).names("broken.png")


ORIENTED = [(turn, kind) for turn in (1, 3, 6, 8) for kind in ("JPEG", "PNG", "TIFF", "WEBP")]


@pytest.mark.parametrize(("turn", "kind"), ORIENTED)
def test_tiles_are_of_the_upright_image(tmp_path: Path, turn: int, kind: str):
    exif = Image.Exif()
    exif[274] = turn
    (tmp_path / f"a.{kind}").write_bytes(encode(Image.fromarray(noise(1, 40, 90)), kind, exif=exif))
    source = tiled(tmp_path)
    index = source.read_index()
    whole = decode((tmp_path / f"a.{kind}").read_bytes())
    assert size_of(next(read_all(source.source, [0])), 10**6) == whole.shape[1:]
    for tile, expected in zip(range(len(index.names)), slices(whole), strict=True):
        np.testing.assert_array_equal(source.read(tile), expected)


def test_deep_images_are_scaled_as_a_whole_set(tmp_path: Path):
    deep = np.random.default_rng(0).integers(0, 65536, (40, 40, 1)).astype(np.uint16)
    (tmp_path / "deep.png").write_bytes(png16(deep))
    source = tiled(tmp_path)
    source.read_index()
    for tile, expected in enumerate(slices(deep.transpose(2, 0, 1).astype(np.float32))):
        np.testing.assert_array_equal(source.read(tile), expected)


def test_an_image_is_decoded_once_for_all_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_images(tmp_path / "data", ["a.png", "b.png"], 64, 48)
    calls: list[int] = []
    real: Callable[..., np.ndarray] = decode_pool.decode

    def counting(data: bytes, *arguments: Any) -> np.ndarray:
        calls.append(len(data))
        return real(data, *arguments)

    monkeypatch.setattr(decode_pool, "decode", counting)
    store = open_store(tiled(folder), image_size=8, workers=0)
    assert len(store.splits["train"]) == 2 * 12
    assert len(calls) == 2
    source = tiled(folder)
    source.read_index()
    assert [item.numbers for item in source.read_together([3, 5, 12, 11, 0])] == [[3, 5], [0], [11, 0]]
    endless = list(source.read_together([*range(12), *range(12)]))  # not one group, if it were of one image for ever
    assert [len(item.numbers) for item in endless] == [12, 12]


def test_what_is_told_of_an_image_is_told_once(tmp_path: Path):
    frames = [Image.fromarray(noise(seed, 40, 40)) for seed in range(2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    notes = open_store(tiled(tmp_path), image_size=8).notes
    assert any(
        "1 image with several frames, of which the first is read; the first is moving.gif#r0c0" in n for n in notes
    )


def test_images_without_a_legible_header_are_refused_by_their_own_name(tmp_path: Path):
    write_images(tmp_path, ["a.png", "b.png"], 40, 40)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(png_header(60_000, 60_000))
    store = open_store(tiled(tmp_path), image_size=8, max_skipped=0.5)
    assert [(s.name, s.reason.split(";")[0]) for s in store.skipped] == [
        ("huge.png", "more than 100 megapixels"),
        ("text.png", "not an image in a known format"),
    ]
    for name in ("a.png", "b.png"):
        (tmp_path / name).unlink()
    with pytest.raises(TooManySkipped, match="2 of 2"):
        open_store(tiled(tmp_path), image_size=8)
    with pytest.raises(UserError, match="no usable train images"):
        open_store(tiled(tmp_path), image_size=8, max_skipped=1.0)


def test_pixels_are_cut_by_what_they_are_and_fewer_than_stated_are_no_image():
    pixels = noise(0, 32, 48).transpose(2, 0, 1)
    (tile,) = decode_all([Tiles(pixels, (32, 48), Grid(2, 3), [4])], 64, workers=0)
    np.testing.assert_array_equal(tile, slices(pixels)[4])
    (tile,) = decode_all([Tiles(pixels[:, :1], (32, 48), Grid(2, 3), [0])], 64, workers=0)
    assert isinstance(tile, BadImage)


def test_labels_and_splits_are_those_of_the_image_and_limit_counts_tiles(tmp_path: Path):
    names = [f"{split}/{kind}/{n}.png" for split in ("train", "test") for kind in "ab" for n in range(3)]
    source = tiled(write_images(tmp_path, names, 40, 40))
    index = source.read_index()
    assert index.labels is not None
    assert index.label_names == ("a", "b")
    for split, rows in index.splits.items():
        assert {index.names[row].split("/")[0] for row in rows} == {split}
    assert [index.names[row].split("/")[1] == "b" for row in range(len(index.names))] == index.labels.tolist()
    assert index.notes[-1] == "12 of 12 images are cut into 108 tiles of about 13 x 13 pixels"
    assert len(open_store(source, image_size=8, limit=7).splits["train"]) == 7
    assert median_side(source, index.splits["train"]) == 13


def test_entries_of_the_cache_are_told_apart_by_the_side(tmp_path: Path):
    write_images(tmp_path / "data", ["a.png", "b.png"], 64, 64)
    data = str(tmp_path / "data")
    found = [open_store(open_source(data, tiles=side), image_size=8) for side in (0, 16, 32, 999)]
    assert [len(store.splits["train"]) for store in found] == [2, 32, 8, 2]
    assert not any(store.from_cache for store in found)
    assert open_store(open_source(data, tiles=16), image_size=8).from_cache
    assert "no image is large enough to be cut into tiles of 999 pixels" in found[-1].notes


def test_a_number_of_tiles_is_no_side(tmp_path: Path):
    with pytest.raises(UserError, match="--tiles 4: is the side of a tile in pixels"):
        open_source(str(write_images(tmp_path, ["a.png"])), tiles=4)


def test_an_array_is_cut_too(tmp_path: Path):
    images = np.stack([noise(seed, 48, 32) for seed in range(3)])
    np.save(tmp_path / "images.npy", images)
    found = list(stored(open_store(tiled(tmp_path / "images.npy"), image_size=LARGE)).values())
    expected = [tile for image in images for tile in slices(image.transpose(2, 0, 1))]
    for pixels, tile in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, tile)


# Labels from a file, and who trains and tests ---------------------------------------------------------------


def table(folder: Path, text: str) -> LabelsFile:
    (folder / "labels.csv").write_text(text)
    return read_labels(str(folder / "labels.csv"))


def labelled(source: TiledSource, labels: LabelsFile | None, by: str | None = None) -> Store:
    store = open_labelled(source, labels, limit=None, seed=0, to_train=True, image_size=8)
    return grouped(store, by, labels, tiled=True)


def test_the_row_of_an_image_is_that_of_its_tiles_unless_they_have_their_own(tmp_path: Path):
    source = tiled(write_images(tmp_path / "data", ["x/a.png", "x/b.png", "y/c.png", "y/d.png"], 32, 32))
    labels = table(tmp_path, "image,label\nx/a.png,one\nb,two\nb.png#r0c1,one\nc.png#r1c1,two\nz.png,one\n")
    images = labelled(source, labels).splits["train"]
    assert images.labels is not None
    assert dict(zip(images.names, images.labels.tolist(), strict=True)) == {
        **dict.fromkeys(Grid(2, 2).names("x/a.png"), 0),
        **dict.fromkeys(Grid(2, 2).names("x/b.png"), 1),
        "x/b.png#r0c1": 0,
        **dict.fromkeys(Grid(2, 2).names("y/c.png") + Grid(2, 2).names("y/d.png"), -1),
        "y/c.png#r1c1": 1,
    }
    with pytest.raises(UserError, match=r"the first image is x/a.png;"):
        labelled(source, table(tmp_path, "image,label\nother.png,one\nanother.png,two\n"))


@pytest.mark.parametrize("by", [None, "parent", "patient"])
def test_tiles_of_an_image_are_never_divided(tmp_path: Path, by: str | None):
    names = [f"{kind}/{room}/{n}.png" for kind in "ab" for room in "pqrs" for n in range(4)]
    source = tiled(write_images(tmp_path / "data", names, 34, 34))
    rows = [f"{name},{name[0]},{name[2] if name[-5] != '0' else ''}" for name in names]
    rows += ["a/p/1.png#r0c0,a,r", "a/q/1.png#r1c1,a,s"]  # that say something else of one tile
    labels = table(tmp_path, "\n".join(["image,label,patient", *rows]))
    for seed in range(5):
        parts = split_labelled(labelled(source, labels, by), seed)
        assert not isinstance(parts, str)
        found = [
            {origin_of(part.images.names[row]) for row in part.indices.tolist()}
            for part in (parts.train, parts.val, parts.test)
        ]
        assert all(found)
        assert sum(map(len, found)) == len(set().union(*found)) == len(names)
        if by == "parent":
            folders = [{name[:3] for name in part} for part in found]
            assert sum(map(len, folders)) == len(set().union(*folders))


def test_one_image_a_class_can_not_be_divided(tmp_path: Path):
    store = labelled(tiled(write_images(tmp_path, ["a/1.png", "b/1.png"], 64, 64)), None)
    with pytest.raises(NotSplit, match=r"every group has all images of a class; .*; tiles of one image are a group"):
        split_labelled(store, 0)


# Streaming --------------------------------------------------------------------------------------------------


def test_streamed_tiles_are_the_stored_ones_and_an_image_is_read_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_images(tmp_path / "data", [f"{n}.png" for n in range(6)], 64, 64)
    store, images = open_streaming(tiled(folder), seed=0, max_skipped=0.0, image_size=8, channels=3)
    assert len(images) == len(store.splits["train"]) == 6 * 16
    expected = store.splits["train"].batch(np.arange(len(images)))
    seen: list[int] = []
    dataset = StreamingDataset(images, 16, seed=0, workers=0)
    opened: list[str] = []
    real = decode_pool.ImageFile.read
    monkeypatch.setattr(decode_pool.ImageFile, "read", lambda file: opened.append(file.path) or real(file))
    for batch in dataset.from_step(0, dataset.per_epoch):
        np.testing.assert_array_equal(batch.images.numpy(), expected[batch.ids.numpy()])
        seen += batch.ids.tolist()
    assert sorted(seen) == list(range(6 * 16))
    assert len(opened) < 3 * 6  # in each of the lanes that an image's tiles fall into; not for each of 16 tiles


def test_the_size_of_what_is_read_is_that_of_its_header():
    data = encode(noise(0, 20, 30))
    assert size_of(data, 10**6) == size_of(noise(0, 20, 30).transpose(2, 0, 1), 10**6) == (20, 30)
    assert size_of(Tiles(data, (20, 30), Grid(2, 4), [1]), 10**6) == (10, 8)
    with pytest.raises(BadImage, match="more than"):
        size_of(data, 599)
    with pytest.raises(BadImage, match="gone"):
        size_of(BadImage("gone"), 10**6)
