"""What of the images is kept in a store: depth, channels, subsets, and what is skipped."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.arrays import ImageListSource
from mocokit.data.build import median_side, subset
from mocokit.data.decode import decode
from mocokit.data.folder import FolderSource
from mocokit.data.sources import open_source
from mocokit.data.store import TooManySkipped, open_store
from mocokit.errors import UserError
from tests.data.stores import all_pixels, open_images, with_bad_images
from tests.helpers import class_folders, encode, noise, write_images


def deep_images(folder: Path, **images: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, pixels in images.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels)
    return folder


def test_deep_images_are_scaled_by_the_range_of_the_set(tmp_path: Path) -> None:
    """Of two images the darker stays darker, and the range is used in full."""
    dark = np.linspace(100, 1000, 64).reshape(8, 8).astype(np.uint16)
    bright = np.linspace(2000, 4100, 64).reshape(8, 8).astype(np.uint16)
    store = open_images(deep_images(tmp_path / "data", dark=dark, light=bright))
    assert store.intensity_range == (100, 4100)
    assert store.channels == 1
    pixels = all_pixels(store)
    expected = np.rint((np.stack([dark, bright]).astype(float) - 100) / 4000 * 255)
    np.testing.assert_array_equal(pixels[:, 0], expected)
    assert (pixels.min(), pixels.max()) == (0, 255)
    cached = open_images(tmp_path / "data")
    assert cached.from_cache
    assert cached.intensity_range == (100, 4100)


def test_a_given_range_clips(tmp_path: Path) -> None:
    root = deep_images(tmp_path / "data", one=np.array([[-5, 0, 0.5, 1, 7]], dtype=np.float32))
    store = open_images(root, intensity_range=(0, 1))
    assert store.intensity_range == (0, 1)
    assert all_pixels(store).ravel().tolist() == [0, 0, 128, 255, 255]


def test_a_constant_deep_set_is_black_and_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = deep_images(tmp_path / "data", one=np.full((4, 4), 7, np.uint16))
    assert not all_pixels(open_images(root)).any()
    assert not recwarn.list


def test_deep_beside_common_images(tmp_path: Path) -> None:
    root = deep_images(tmp_path / "data", deep=np.array([[0, 65535]], dtype=np.uint16).repeat(2, axis=0))
    flat = noise(1, 2, 2, channels=1)
    (root / "flat.png").write_bytes(encode(flat))
    pixels = all_pixels(open_images(root))
    np.testing.assert_array_equal(pixels[:, 0], [[[0, 255], [0, 255]], flat])


def test_gray_stays_gray_and_becomes_rgb_beside_colour(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png", "2.png"], channels=1)
    assert open_images(root).channels == 1
    write_images(root, ["3.png"])
    store = open_images(root)
    assert store.channels == 3
    gray = decode((root / "1.png").read_bytes())
    np.testing.assert_array_equal(store.splits["train"].batch([0])[0], np.repeat(gray, 3, axis=0))


def test_one_colour_file_among_many_gray_ones_becomes_gray(tmp_path: Path) -> None:
    """Named, and like the others, whether those are saved with one channel or with three equal ones."""
    gray = write_images(tmp_path / "gray", [f"{number:03d}.png" for number in range(100)], channels=1)
    for name in ("000.png", "001.png"):
        (gray / name).write_bytes(
            encode(noise(7, channels=1)[..., None].repeat(3, axis=2) + np.uint8(name == "001.png"))
        )
    alone = open_images(gray)
    assert (alone.channels, alone.notes) == (1, ())
    write_images(gray, ["x.png"])
    store = open_images(gray)
    luma = open_images(write_images(tmp_path / "x", ["x.png"]), channels=1)
    assert store.channels == 1
    assert store.notes == ("1 of 101 images has colour, under 1 %, so all are kept as gray; the first is x.png",)
    np.testing.assert_array_equal(all_pixels(store)[:-1], all_pixels(alone))
    np.testing.assert_array_equal(all_pixels(store)[-1:], all_pixels(luma))
    assert open_images(gray, channels=3).notes == ()  # asked for, so not told
    write_images(gray, ["y.png"])
    store = open_images(gray)
    assert store.channels == 3
    assert store.notes[0].startswith("2 of 102 images have colour, so all are kept as colour; the first is x.png")


def test_images_of_equal_pixels_are_counted(tmp_path: Path) -> None:
    """Copies whatever the files, also across splits; other shapes of the same bytes are none."""
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    pixels = noise(1, 4, 6)
    (root / "train" / "a.png").write_bytes(encode(pixels))
    (root / "train" / "b.png").write_bytes(encode(pixels.reshape(6, 4, 3)))
    (root / "train" / "c.png").write_bytes(encode(noise(2, 4, 6)))
    (root / "test" / "c.png").write_bytes(encode(noise(3, 4, 6)))
    assert open_images(root).notes == ()
    (root / "test" / "d.bmp").write_bytes(encode(pixels, "BMP"))
    assert open_images(root).notes == ("1 image is an exact copy of another; the first: train/a.png = test/d.bmp",)
    (root / "train" / "e.png").write_bytes(encode(pixels))
    (root / "train" / "f.png").write_bytes(encode(noise(2, 4, 6)))
    copies = open_images(root).notes[0]
    assert copies == "3 images are exact copies of another; the first: train/a.png = train/e.png"


def test_channels_can_be_asked_for(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png"])
    rgb = decode((root / "1.png").read_bytes()).astype(float)
    luma = all_pixels(open_images(root, channels=1))
    assert luma.shape[1] == 1
    np.testing.assert_allclose(luma[0, 0], 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2], atol=0.51)
    gray = write_images(tmp_path / "gray", ["1.png"], channels=1)
    assert open_images(gray, channels=3).channels == 3


def test_the_most_common_band_count_wins(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 255, (5, 8, 8), dtype=np.uint8)
    root = tmp_path / "data"
    root.mkdir()
    for number in range(3):
        tifffile.imwrite(root / f"{number}.tif", bands, photometric="minisblack", planarconfig="separate")
    write_images(root, ["x.png"])
    write_images(root, ["y.png"], channels=1)
    store = open_images(root, max_skipped=0.5)
    assert store.channels == 5
    assert store.skipped == [("x.png", "3 channels among images with 5"), ("y.png", "1 channels among images with 5")]
    np.testing.assert_array_equal(all_pixels(store), np.stack([bands] * 3))
    assert open_images(root, max_skipped=0.9, channels=3).skipped[0].name == "0.tif"


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6), limit=st.integers(1, 120), seed=st.integers(0, 9))
def test_a_limited_set_is_balanced(counts: list[int], limit: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = subset(np.arange(len(labels)), labels, limit, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(limit, len(labels))
    assert (np.diff(chosen) > 0).all()
    kept = np.bincount(labels[chosen], minlength=len(counts))
    for value, count in enumerate(counts):  # only a class that is used up may be smaller than the others
        assert kept[value] >= min(count, kept.max() - 1)
    np.testing.assert_array_equal(chosen, subset(np.arange(len(labels)), labels, limit, seed))


def test_images_without_a_label_come_last() -> None:
    labels = np.array([-1] * 20 + [0] * 3 + [1] * 3)
    assert np.bincount(labels[subset(np.arange(26), labels, 4, 0)]).tolist() == [2, 2]
    assert np.bincount(labels[subset(np.arange(26), labels, 16, 0)] + 1).tolist() == [10, 3, 3]


def test_without_labels_the_limit_is_a_plain_random_subset() -> None:
    chosen = [subset(np.arange(100, 200), None, 10, seed) for seed in range(200)]
    counts = np.bincount(np.concatenate(chosen), minlength=200)[100:]
    assert counts.sum() == 2000
    assert counts.max() < 45  # 20 expected, standard deviation 4.2
    assert not np.array_equal(chosen[0], chosen[1])


def test_the_limit_is_for_training_only(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", classes=2, train=9, test=5)
    store = open_images(root, limit=6)
    assert {split: len(images) for split, images in store.splits.items()} == {"train": 6, "test": 10}
    labels = store.splits["train"].labels
    assert labels is not None
    assert np.bincount(labels).tolist() == [3, 3]
    assert open_images(root, limit=6, seed=1).fingerprint != store.fingerprint


def test_a_few_bad_images_are_listed(tmp_path: Path) -> None:
    root = with_bad_images(tmp_path / "data", good=39, bad=1)
    (root / "loop.png").symlink_to("loop.png")
    store = open_images(root, max_skipped=0.05)
    assert len(store.splits["train"]) == 39
    assert store.skipped == [("loop.png", "symbolic link that loops"), ("bad0.jpg", "not an image in a known format")]
    assert open_images(root, max_skipped=0.05).skipped == store.skipped
    with pytest.raises(TooManySkipped):  # also from the cache
        open_images(root, max_skipped=0.04)


def test_too_many_bad_images_stop_the_run(tmp_path: Path, cache: Path) -> None:
    root = with_bad_images(tmp_path / "data", good=6, bad=4)
    message = r"^4 of 10 images \(40.0%\).*bad0.jpg: not an image.*--max-skipped"
    with pytest.raises(TooManySkipped, match=message) as caught:
        open_images(root)
    assert [skipped.name for skipped in caught.value.skipped] == [f"bad{number}.jpg" for number in range(4)]
    assert list((cache / "images").iterdir()) == []
    assert len(open_images(root, max_skipped=0.4).splits["train"]) == 6


def test_no_usable_image_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable train images"):
        open_images(with_bad_images(tmp_path / "data", good=0, bad=2), max_skipped=1.0)


def test_a_split_without_usable_images_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path / "data", ["train/1.png"])
    with_bad_images(tmp_path / "data" / "test", good=0, bad=1)
    assert list(open_images(tmp_path / "data", max_skipped=0.5).splits) == ["train"]


def test_files_replaced_by_pipes_do_not_hang_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path / "data", [f"{i}.png" for i in range(30)])
    read_index = FolderSource.read_index

    def list_and_swap(source: FolderSource):
        image_index = read_index(source)
        (root / "3.png").unlink()
        os.mkfifo(root / "3.png")
        return image_index

    monkeypatch.setattr(FolderSource, "read_index", list_and_swap)
    assert open_images(root).skipped == [("3.png", "not a regular file")]


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_images(write_images(tmp_path / "data", [f"{i}.png" for i in range(70)]), progress=lambda *x: seen.append(x))
    assert seen == [(64, 70), (70, 70)]


# Sizes ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8))
def test_the_median_is_that_of_the_shorter_sides(sizes: list[tuple[int, int]]) -> None:
    source = ImageListSource([np.zeros(size, np.uint8) for size in sizes])
    assert median_side(source, np.arange(len(sizes))) == np.median([min(size) for size in sizes])


def test_the_median_looks_at_few_images_and_leaves_out_bad_ones(tmp_path: Path) -> None:
    root = with_bad_images(tmp_path / "data", good=3, bad=2)
    source = open_source(str(root))
    assert median_side(source, np.arange(len(source.read_index().names))) == 8
    bad = [i for i, name in enumerate(source.read_index().names) if name.startswith("bad")]
    assert np.isnan(median_side(source, np.array(bad)))
    reads: list[int] = []

    class Counting(ImageListSource):
        def read(self, index: int) -> bytes | np.ndarray:
            reads.append(index)
            return super().read(index)

    median_side(Counting([np.zeros((4, 4), np.uint8)] * 1000), np.arange(0, 1000, 2))
    assert len(reads) == 100
    assert (min(reads), max(reads)) == (0, 998)


def test_a_few_extreme_pixels_do_not_widen_the_range(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(100, 601, (8, 32, 32)).astype(np.uint16)
    images[3, 5, 5] = 65535
    store = open_images(
        deep_images(tmp_path / "data", **{f"c{i}": image for i, image in enumerate(images)}), image_size=32
    )
    assert store.intensity_range == (100, 600)
    assert len(np.unique(all_pixels(store))) > 200
    assert store.notes == (
        "8 images of more than 8 bits: 100 to 600 become 0 to 255 (percentiles 0.1 and 99.9 of their pixels), "
        "others are clipped; the first is c0.tif",
    )
    assert open_images(tmp_path / "data", image_size=32).summary().endswith("\n" + store.notes[0])


def test_few_gray_levels_are_told(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(100, 601, (4, 32, 32)).astype(np.uint16)
    images[:, 0, :8] = 65535  # too many to be left out
    store = open_images(
        deep_images(tmp_path / "data", **{f"c{i}": image for i, image in enumerate(images)}), image_size=32
    )
    assert "share 2 of 256 gray levels" in store.notes[-1]


def test_pixels_without_data_leave_the_range_alone(tmp_path: Path) -> None:
    heights = np.linspace(200, 250, 64, dtype=np.float32).reshape(8, 8)
    holes = heights.copy()
    holes[2:5, 2:5] = -9999
    store = open_images(deep_images(tmp_path / "data", a=heights, b=holes))
    assert store.intensity_range == (200, 250)
    assert store.notes[0] == (
        "1 image with pixels without data, which get the least value of their image; the first is b.tif"
    )


def test_for_an_encoder_of_8_bit_images_depth_changes_nothing(tmp_path: Path) -> None:
    image = noise(0, channels=1)
    deep_images(tmp_path / "a", x=image)
    deep_images(tmp_path / "b", x=image.astype(np.uint16) * 257)
    deep_images(tmp_path / "c", x=image.astype(np.float32) / 255)
    pixels = [all_pixels(open_images(tmp_path / name, channels=3)) for name in "abc"]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])


def test_floats_from_0_to_1_are_the_8_bit_picture_also_in_training(tmp_path: Path) -> None:
    image = noise(0, channels=1) // 2 + 20  # no black and no white
    deep_images(tmp_path / "a", x=image)
    deep_images(tmp_path / "b", x=image.astype(np.float32) / 255)
    stores = [open_images(tmp_path / name) for name in "ab"]
    np.testing.assert_array_equal(all_pixels(stores[0]), all_pixels(stores[1]))
    assert stores[1].intensity_range is None
    assert stores[1].notes == (
        "1 image of more than 8 bits: 0 to 1, or else 0 to 65535, become 0 to 255; the first is x.tif",
    )


def test_how_many_pixels_an_image_may_have_can_be_chosen(tmp_path: Path) -> None:
    root = str(write_images(tmp_path / "data", ["1.png", "2.png", "3.png"]))
    write_images(tmp_path / "data", ["4.png"], height=9)
    store = open_store(open_source(root, max_pixels=64), image_size=8, max_skipped=0.5, workers=0)
    assert store.skipped == [("4.png", "more than 6.4e-05 megapixels; --max-pixels allows more")]
    assert open_store(open_source(root), image_size=8, workers=0).skipped == []  # not the entry of the other limit
