"""The store holds what decode gives, finds it again, and survives what happens to long decoding jobs."""

import contextlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data import store as store_module
from mocokit.data import workers as workers_module
from mocokit.data.build import limited
from mocokit.data.decode import BadImage, decode
from mocokit.data.sources import FolderSource
from mocokit.data.store import Skipped, Store, TooManySkipped, open_store, write_skipped
from mocokit.data.workers import decode_all
from mocokit.errors import UserError
from tests.helpers import archive, class_folders, encode, noise, write_images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def open_images(path: Path, **options: object) -> Store:
    return open_store(str(path), **{"image_size": None, "image_size_cap": 64, **options})  # type: ignore[arg-type]


def all_pixels(store: Store, split: str = "train") -> np.ndarray:
    return store.splits[split].batch(np.arange(len(store.splits[split])))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


# Contents ------------------------------------------------------------------------------------------------


def test_a_labelled_set(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", classes=3, train=5, test=2)
    store = open_images(root)
    assert (store.name, store.image_size, store.channels, store.from_cache) == ("pets", 16, 3, False)
    assert store.label_names == ("class0", "class1", "class2")
    assert list(store.splits) == ["train", "test"]
    for split, count in (("train", 15), ("test", 6)):
        images = store.splits[split]
        assert len(images) == count == len(images.names)
        assert images.labels is not None
        assert images.labels.dtype == np.int64
        assert images.canvas == (8, 8)
        assert images.nbytes == count * 3 * 64
        assert images.sizes.dtype == np.int32
        expected = np.stack([decode((root / name).read_bytes()) for name in images.names])
        np.testing.assert_array_equal(all_pixels(store, split), expected)
        assert [f"class{label}" for label in images.labels] == [name.split("/")[1] for name in images.names]


def test_digits_are_kept_as_they_are() -> None:
    store = open_store("digits", image_size=None, image_size_cap=224)
    assert (store.image_size, store.channels, store.skipped) == (16, 1, [])
    assert {split: len(images) for split, images in store.splits.items()} == {"train": 1438, "test": 359}
    batch = store.splits["test"].batch([3, 0, 3])
    assert batch.shape == (3, 1, 8, 8)
    np.testing.assert_array_equal(batch[0], batch[2])
    batch[:] = 0  # a copy: the cache is not written to
    assert store.splits["test"].batch([3]).any()


def ragged(folder: Path, prefix: str = "") -> Path:
    for number in range(12):
        write_images(folder, [f"{prefix}{number:02d}.png"], height=5 + number, width=20 - number)
    return folder


def test_images_of_many_sizes_are_padded(tmp_path: Path) -> None:
    root = ragged(tmp_path / "data")
    store = open_images(root, image_size=64)
    images = store.splits["train"]
    assert images.canvas == (16, 20)
    assert images.sizes.tolist() == [[5 + number, 20 - number] for number in range(12)]
    order = [7, 0, 11, -1]
    for padded, index in zip(images.batch(order), order, strict=True):
        height, width = images.sizes[index]
        np.testing.assert_array_equal(
            padded[:, :height, :width], decode((root / images.names[index]).read_bytes())
        )
        assert not padded[:, height:].any()
        assert not padded[:, :, width:].any()
    with pytest.raises(IndexError):
        images.batch([12])


def test_an_image_set_pickles_as_a_path(tmp_path: Path) -> None:
    images = open_images(ragged(tmp_path / "data")).splits["train"]
    images.batch([0])
    pickled = pickle.dumps(images)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy.batch([1, 5]), images.batch([1, 5]))
    assert copy.names == images.names


def test_the_second_split_of_a_ragged_set_starts_where_the_first_ends(tmp_path: Path) -> None:
    ragged(tmp_path / "data" / "train")
    ragged(tmp_path / "data" / "test", prefix="other")
    store = open_images(tmp_path / "data", image_size=32)
    assert not np.array_equal(all_pixels(store), all_pixels(store, "test"))
    name = store.splits["test"].names[0]
    height, width = store.splits["test"].sizes[0]
    np.testing.assert_array_equal(
        store.splits["test"].batch([0])[0, :, :height, :width],
        decode((tmp_path / "data" / name).read_bytes()),
    )


@pytest.mark.parametrize(
    ("sides", "cap", "expected"),
    [([(32, 32)], 224, 32), ([(30, 90)], 224, 32), ([(29, 40), (29, 40), (500, 600)], 224, 32),
     ([(2, 2)], 224, 16), ([(300, 400)], 224, 224), ([(27, 27)], 224, 24), ([(28, 28)], 224, 32)],
)  # fmt: skip
def test_the_image_size_follows_the_images(
    tmp_path: Path, sides: list[tuple[int, int]], cap: int, expected: int
) -> None:
    for number, (height, width) in enumerate(sides):
        write_images(tmp_path / "data", [f"{number}.png"], height=height, width=width)
    assert open_images(tmp_path / "data", image_size_cap=cap).image_size == expected


@pytest.mark.parametrize(("side", "expected"), [(8, 16), (16, 16), (24, 16), (32, 16), (64, 32), (300, 40)])
def test_a_share_of_the_images_size(tmp_path: Path, side: int, expected: int) -> None:
    root = write_images(tmp_path / "data", ["a.png"], height=side, width=side)
    assert open_images(root, image_size_cap=40, image_size_share=0.5).image_size == expected


def test_large_images_are_kept_twice_as_large_as_the_model_needs(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png", "2.png"], height=50, width=100)
    store = open_images(root, image_size=16)
    assert store.image_size == 16
    assert store.splits["train"].canvas == (16, 32)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_images(
        write_images(tmp_path / "data", [f"{i}.png" for i in range(70)]), progress=lambda *x: seen.append(x)
    )
    assert seen == [(64, 70), (70, 70)]


# Deep images ---------------------------------------------------------------------------------------------


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


def test_a_constant_deep_set_is_black_and_no_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    root = deep_images(tmp_path / "data", one=np.full((4, 4), 7, np.uint16))
    assert not all_pixels(open_images(root)).any()
    assert not recwarn.list


def test_deep_beside_common_images(tmp_path: Path) -> None:
    root = deep_images(tmp_path / "data", deep=np.array([[0, 65535]], dtype=np.uint16).repeat(2, axis=0))
    flat = noise(1, 2, 2, channels=1)
    (root / "flat.png").write_bytes(encode(flat))
    pixels = all_pixels(open_images(root))
    np.testing.assert_array_equal(pixels[:, 0], [[[0, 255], [0, 255]], flat])


# Channels ------------------------------------------------------------------------------------------------


def test_gray_stays_gray_and_becomes_rgb_beside_colour(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png", "2.png"], channels=1)
    assert open_images(root).channels == 1
    write_images(root, ["3.png"])
    store = open_images(root)
    assert store.channels == 3
    gray = decode((root / "1.png").read_bytes())
    np.testing.assert_array_equal(store.splits["train"].batch([0])[0], np.repeat(gray, 3, axis=0))


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
    assert store.skipped == [
        ("x.png", "3 channels among images with 5"),
        ("y.png", "1 channels among images with 5"),
    ]
    np.testing.assert_array_equal(all_pixels(store), np.stack([bands] * 3))
    assert open_images(root, max_skipped=0.9, channels=3).skipped[0].name == "0.tif"


# Limit ---------------------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    limit=st.integers(1, 120),
    seed=st.integers(0, 9),
)
def test_a_limited_set_is_balanced(counts: list[int], limit: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = limited(np.arange(len(labels)), labels, limit, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(limit, len(labels))
    assert (np.diff(chosen) > 0).all()
    kept = np.bincount(labels[chosen], minlength=len(counts))
    for value, count in enumerate(counts):  # only a class that is used up may be smaller than the others
        assert kept[value] >= min(count, kept.max() - 1)
    np.testing.assert_array_equal(chosen, limited(np.arange(len(labels)), labels, limit, seed))


def test_without_labels_the_limit_is_a_plain_random_subset() -> None:
    chosen = [limited(np.arange(100, 200), None, 10, seed) for seed in range(200)]
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


# Skipped images ------------------------------------------------------------------------------------------


def with_bad_images(folder: Path, good: int, bad: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder, [f"{number:03d}.png" for number in range(good)])
    for number in range(bad):
        (folder / f"bad{number}.jpg").write_text("not a picture")
    return folder


def test_a_few_bad_images_are_listed(tmp_path: Path) -> None:
    root = with_bad_images(tmp_path / "data", good=39, bad=1)
    (root / "loop.png").symlink_to("loop.png")
    store = open_images(root, max_skipped=0.05)
    assert len(store.splits["train"]) == 39
    assert store.skipped == [
        ("loop.png", "symbolic link that loops"),
        ("bad0.jpg", "not an image in a known format"),
    ]
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
    with pytest.raises(UserError, match="no usable training images"):
        open_images(with_bad_images(tmp_path / "data", good=0, bad=2), max_skipped=1.0)


def test_a_split_without_usable_images_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path / "data", ["train/1.png"])
    with_bad_images(tmp_path / "data" / "test", good=0, bad=1)
    assert list(open_images(tmp_path / "data", max_skipped=0.5).splits) == ["train"]


def test_the_list_of_skipped_images_is_csv(tmp_path: Path) -> None:
    names = ["plain.png", 'comma, "quote".png', "new\nline.png", os.fsdecode(b"caf\xe9.png")]
    write_skipped(tmp_path / "out" / "skipped.csv", [Skipped(name, "a, b") for name in names])
    import csv

    with (tmp_path / "out" / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "reason"]
    assert rows[1:] == [[name, "a, b"] for name in [*names[:3], "caf\\udce9.png"]]


def test_names_that_are_not_utf8_survive_the_cache(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png"])
    with open(os.path.join(os.fsencode(root), b"caf\xe9.png"), "wb") as file:
        file.write(encode(noise(1)))
    assert open_images(root).splits["train"].names == ["1.png", "caf\udce9.png"]
    assert open_images(root).splits["train"].names == ["1.png", "caf\udce9.png"]


# The cache -----------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_listed_or_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(class_folders(tmp_path / "data"), tmp_path / "data.tar.xz")
    first = open_images(path)
    before = contents(first.path)

    def never(*_: object) -> None:
        raise AssertionError("not from the cache")

    monkeypatch.setattr("mocokit.data.archives.TarSource.scan", never)
    second = open_images(path)
    assert second.from_cache
    assert not first.from_cache
    assert contents(second.path) == before
    assert (second.fingerprint, second.label_names, second.image_size) == (
        first.fingerprint,
        first.label_names,
        first.image_size,
    )
    np.testing.assert_array_equal(all_pixels(second), all_pixels(first))


def test_every_option_and_every_file_has_its_own_entry(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data")
    paths = {open_images(root).path}
    for options in (
        {"image_size": 6},
        {"limit": 4},
        {"limit": 4, "seed": 1},
        {"channels": 1},
        {"image_size_cap": 4},
        {"image_size_share": 0.5},
    ):
        paths.add(open_images(root, **options).path)
    write_images(root, ["train/class0/new.png"])
    paths.add(open_images(root).path)
    assert len(paths) == 8


def test_what_was_found_out_may_be_asked_for(tmp_path: Path) -> None:
    """After pretraining on `auto` the other verbs ask for the encoder's size, channels and range."""
    root = class_folders(tmp_path / "data")
    chosen = open_images(root, image_size=None, seed=3)
    found_out = {"image_size": chosen.image_size, "channels": chosen.channels}
    again = open_images(root, **found_out, image_size_cap=chosen.image_size, image_size_share=1.0)
    assert (again.path, again.from_cache) == (chosen.path, True)
    assert not open_images(root, **found_out | {"image_size": chosen.image_size + 8}).from_cache
    assert not open_images(root, **found_out, intensity_range=(0.0, 7.0)).from_cache
    assert not open_images(root, **found_out, limit=4, seed=3).from_cache


@pytest.mark.parametrize("file", ["pixels.bin", "index.npz", "facts.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, file: str, damage: str) -> None:
    root = class_folders(tmp_path / "data")
    store = open_images(root)
    before = contents(store.path)
    path = store.path / file
    path.chmod(0o644)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if damage == "short" else b"")
    again = open_images(root)
    assert not again.from_cache
    assert contents(again.path) == before
    assert open_images(root).from_cache


def test_a_store_in_use_survives_the_removal_of_its_entry(tmp_path: Path) -> None:
    store = open_images(class_folders(tmp_path / "data"))
    shutil.rmtree(store.path)
    assert all_pixels(store).any()


def test_the_same_images_have_one_fingerprint_wherever_they_are(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", classes=3)
    fingerprint = open_images(root).fingerprint
    wrapped = tmp_path / "wrapper" / "inner"
    shutil.copytree(root, wrapped / "data")
    for other in (archive(root, tmp_path / "data.zip"), archive(root, tmp_path / "x.tar.xz"), wrapped.parent):
        assert open_images(other).fingerprint == fingerprint
    (root / "train" / "class0" / "000.png").rename(root / "train" / "class2" / "zzz.png")
    assert open_images(root).fingerprint != fingerprint


def test_the_fingerprint_follows_a_single_pixel(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data")
    before = open_images(root).fingerprint
    path = root / "train" / "class0" / "000.png"
    pixels = decode(path.read_bytes()).transpose(1, 2, 0).copy()
    pixels[3, 3, 1] ^= 1
    path.write_bytes(encode(pixels))
    assert open_images(root).fingerprint != before


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write the image cache .*set MOCOKIT_CACHE") as caught:
        open_images(class_folders(tmp_path / "data"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("suffix", ["", ".tar.xz"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path, suffix: str) -> None:
    """A limit on the size of files stands in for the full disk: both fail in write()."""
    data = write_images(tmp_path / "data", [f"{i}.png" for i in range(20)], height=60, width=60)
    if suffix:
        data = archive(data, tmp_path / f"data{suffix}")
    program = """
import resource, sys
from mocokit.data.store import open_store
from mocokit.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    open_store(sys.argv[1], image_size=64, image_size_cap=64)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(data)], capture_output=True, text=True)
    assert done.stderr == ""
    assert "cannot write the image cache" in done.stdout
    assert "MOCOKIT_CACHE" in done.stdout
    assert list((cache / "images").iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MOCOKIT_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a"),
        ({"XDG_CACHE_HOME": "b"}, "b/mocokit"),
        ({}, "home/.cache/mocokit"),
    ],
)
def test_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("MOCOKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert open_images(class_folders(tmp_path / "data")).path.parent == tmp_path / expected / "images"


# Processes -----------------------------------------------------------------------------------------------


def test_parallel_is_serial(tmp_path: Path) -> None:
    root = with_bad_images(ragged(tmp_path / "data"), good=290, bad=5)
    serial, parallel = open_images(root, workers=0), None
    before = contents(serial.path)
    shutil.rmtree(serial.path)
    parallel = open_images(root, workers=3)
    assert not parallel.from_cache
    assert contents(parallel.path) == before
    assert len(parallel.skipped) == 5


def test_started_anew_instead_of_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    monkeypatch.setattr(workers_module, "sys", SimpleNamespace(platform="darwin"))
    images = [encode(noise(seed)) for seed in range(70)]
    for seed, pixels in enumerate(decode_all(images, 64, workers=1)):
        np.testing.assert_array_equal(pixels, noise(seed).transpose(2, 0, 1))


CRASH = b"crash"


def decode_or_die(data: bytes, max_side: int | None) -> np.ndarray:
    if data.startswith(CRASH):
        assert multiprocessing.parent_process() is not None
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data, max_side)


@pytest.mark.skipif(sys.platform != "linux", reason="the replaced decoder reaches workers only by a fork")
def test_an_image_that_kills_its_worker_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "decode", decode_or_die)
    images = [encode(noise(seed)) for seed in range(400)]
    for index in (0, 5, 130, 399):
        images[index] = CRASH
    results = list(decode_all(images, 64, workers=2))
    assert [index for index, result in enumerate(results) if isinstance(result, BadImage)] == [0, 5, 130, 399]
    assert "crashed" in str(results[5])
    for index in (1, 4, 6, 131, 398):
        np.testing.assert_array_equal(results[index], noise(index).transpose(2, 0, 1))


def test_only_a_bounded_number_of_images_is_in_flight() -> None:
    read = 0

    def images() -> Iterator[bytes]:
        nonlocal read
        for _ in range(3000):
            read += 1
            yield PNG

    ahead = 0
    for taken, _ in enumerate(decode_all(images(), 64, workers=2)):
        ahead = max(ahead, read - taken)
    assert read == 3000
    assert 64 < ahead <= 64 * 6


PNG = encode(noise(0))
SLOW_BUILD = """
import os, sys, time
from mocokit.data import workers
from mocokit.data.store import open_store
decode = workers.decode
def slow(data, max_side):
    open(os.path.join(sys.argv[2], str(os.getpid())), "w").close()
    time.sleep(0.05)
    return decode(data, max_side)
workers.decode = slow
open_store(sys.argv[1], image_size=8, image_size_cap=8, workers=2)
"""


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_leaves_no_entry_and_no_process(
    tmp_path: Path, cache: Path, signal_number: signal.Signals
) -> None:
    root = write_images(tmp_path / "data", [f"{i:03d}.png" for i in range(300)])
    seen = tmp_path / "workers"
    seen.mkdir()
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(seen)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        wait_for(lambda: len(list(seen.iterdir())) == 2)
        decoders = [int(path.name) for path in seen.iterdir()]
        assert process.pid not in decoders
        assert all(map(alive, decoders))
        if signal_number == signal.SIGINT:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        else:
            process.kill()
        start = time.monotonic()
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - start < 3  # to finish the chunks under way would take longer
        wait_for(lambda: not any(map(alive, decoders)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    left = list((cache / "images").iterdir())
    if signal_number == signal.SIGINT:
        assert left == []
        assert errors.count(b"KeyboardInterrupt") == 1  # the workers say nothing
    else:
        assert [path.name.endswith(".building") for path in left] == [True]
    store = open_images(root, image_size=8, image_size_cap=8)
    assert not store.from_cache
    assert len(store.splits["train"]) == 300
    assert list((cache / "images").iterdir()) == [store.path]  # what was left behind is removed


def test_two_builders_at_once(tmp_path: Path, cache: Path) -> None:
    root = class_folders(tmp_path / "data", train=30)
    program = """
import sys
from mocokit.data.store import open_store
print(open_store(sys.argv[1], image_size=None, image_size_cap=64).fingerprint)
"""
    builders = [
        subprocess.Popen([sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    fingerprints = {builder.communicate(timeout=60)[0].strip() for builder in builders}
    assert [builder.returncode for builder in builders] == [0] * 4
    assert fingerprints == {open_images(root).fingerprint}
    assert len(list((cache / "images").iterdir())) == 1


def test_a_build_that_loses_the_race_uses_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "data")
    build = store_module.build

    def overtaken(*arguments: object) -> None:
        build(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(store_module, "build", build)
        open_images(root)

    monkeypatch.setattr(store_module, "build", overtaken)
    store = open_images(root)
    assert len(list(store.path.parent.iterdir())) == 1
    assert all_pixels(store).any()


def test_a_program_on_standard_input_may_decode_in_parallel(tmp_path: Path) -> None:
    """Workers must not depend on a __main__ that can be imported: notebooks and pipes have none."""
    root = write_images(tmp_path / "data", [f"{i}.png" for i in range(20)])
    program = f"""
from mocokit.data.store import open_store
print(len(open_store({str(root)!r}, image_size=8, image_size_cap=8, workers=2).splits["train"]))
"""
    done = subprocess.run([sys.executable], input=program, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("20\n", "")


def test_files_replaced_by_pipes_do_not_hang_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path / "data", [f"{i}.png" for i in range(30)])
    scan = FolderSource.scan

    def scan_and_swap(source: FolderSource):
        listing = scan(source)
        (root / "3.png").unlink()
        os.mkfifo(root / "3.png")
        return listing

    monkeypatch.setattr(FolderSource, "scan", scan_and_swap)
    assert open_images(root).skipped == [("3.png", "not a regular file")]


# Photographs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    "MOCOKIT_CIFAR10" not in os.environ, reason="set MOCOKIT_CIFAR10 to an archive of CIFAR-10"
)
def test_cifar10_from_an_archive() -> None:
    start = time.perf_counter()
    store = open_store(os.environ["MOCOKIT_CIFAR10"], image_size=None, image_size_cap=224)
    cold = time.perf_counter() - start
    start = time.perf_counter()
    cached = open_store(os.environ["MOCOKIT_CIFAR10"], image_size=None, image_size_cap=224)
    warm = time.perf_counter() - start
    print(json.dumps({"cold_s": round(cold, 2), "cached_s": round(warm, 3)}))
    assert cached.from_cache
    assert warm < 1
    assert {split: len(images) for split, images in store.splits.items()} == {"train": 50_000, "test": 10_000}
    assert (store.image_size, store.channels, store.skipped) == (32, 3, [])
    assert store.label_names is not None
    assert len(store.label_names) == 10
    assert store.splits["train"].labels is not None
    assert np.bincount(store.splits["train"].labels).tolist() == [5000] * 10
    means = store.splits["train"].batch(np.arange(0, 50_000, 10)).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(means, [125.3, 123.0, 113.9], atol=2)  # the data set's well-known mean
