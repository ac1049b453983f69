"""Decoding in several processes gives what one gives, in order, whatever the images do to the processes."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from mocokit.data import decode_pool as pool_module
from mocokit.data.decode import decode
from mocokit.data.decode_pool import decode_all, decode_for_model, read_all, worker_count
from mocokit.data.pillow import BadImage
from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from tests.data.stores import contents, open_images, ragged, with_bad_images
from tests.helpers import archive, encode, noise, png16, write_images


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
    monkeypatch.setattr(pool_module, "sys", SimpleNamespace(platform="darwin"))
    images = [encode(noise(seed)) for seed in range(70)]
    for seed, pixels in enumerate(decode_all(images, 64, workers=1)):
        np.testing.assert_array_equal(pixels, noise(seed).transpose(2, 0, 1))


CRASH = b"crash"


def decode_or_die(data: bytes, *options: Any) -> np.ndarray:
    if data.startswith(CRASH):
        assert multiprocessing.parent_process() is not None
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data, *options)


@pytest.mark.skipif(sys.platform != "linux", reason="the replaced decoder reaches workers only by a fork")
def test_an_image_that_kills_its_worker_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "decode", decode_or_die)
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


def test_a_program_on_standard_input_may_decode_in_parallel(tmp_path: Path) -> None:
    """Workers must not depend on a __main__ that can be imported: notebooks and pipes have none."""
    root = write_images(tmp_path / "data", [f"{i}.png" for i in range(20)])
    program = f"""
from mocokit.data.store import open_store
print(len(open_store({str(root)!r}, image_size=8, workers=2).splits["train"]))
"""
    done = subprocess.run([sys.executable], input=program, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("20\n", "")


SIZES = [(8, 8), (40, 30), (5, 31), (64, 16), (16, 16)]


def streamed(data, image_size=8, channels=3, intensity_range=None, workers=0):
    source = open_source(str(data))
    image_index = source.read_index()
    images = read_all(source, range(len(image_index.names)))
    options = {"image_size": image_size, "channels": channels, "intensity_range": intensity_range, "workers": workers}
    return dict(zip(image_index.names, decode_for_model(images, **options), strict=True))


def assert_equals_store(data, images, **options):
    store = open_store(str(data), image_size=8, max_skipped=1.0, **options)
    assert sum(map(len, store.splits.values())) > 2
    for split in store.splits.values():
        for row, name in enumerate(split.names):
            height, width = split.sizes[row]
            assert np.array_equal(images[name], split.batch([row])[0, :, :height, :width]), name


@pytest.fixture
def mixed(tmp_path):
    """Gray and colour images of several sizes in train/ and test/, one of them damaged."""
    folder = tmp_path / "mixed"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for i, size in enumerate(SIZES):
            (folder / split / f"{i}.png").write_bytes(encode(noise(i, *size, channels=1 + 2 * (i % 2))))
    (folder / "train" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_are_those_of_the_store(mixed, channels, workers):
    images = streamed(mixed, channels=channels, workers=workers)
    assert isinstance(images.pop("train/bad.png"), BadImage)
    assert all(pixels.dtype == np.uint8 and len(pixels) == channels for pixels in images.values())
    assert_equals_store(mixed, images, channels=channels)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.xz"])
def test_archives(mixed, tmp_path, suffix):
    packed = archive(mixed, tmp_path / f"mixed{suffix}")
    assert_equals_store(packed, streamed(packed), channels=3)


def test_deep_images_are_scaled_from_the_range_of_the_encoder(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 2000 * (i + 1), (9, 9, 1), dtype=np.uint16)
        (tmp_path / f"{i}.png").write_bytes(png16(pixels))
    intensity_range = (100.0, 5000.0)
    images = streamed(tmp_path, channels=1, intensity_range=intensity_range)
    assert_equals_store(tmp_path, images, channels=1, intensity_range=intensity_range)
    notes: list[str] = []
    files = [path.read_bytes() for path in sorted(tmp_path.glob("*.png"))]
    list(
        decode_for_model(
            files, image_size=8, channels=1, intensity_range=intensity_range, noted=lambda _, t: notes.append(t)
        )
    )
    told = "of more than 8 bits: 100 to 5000 become 0 to 255 (the range of the encoder or the call), others are clipped"
    assert notes == [told] * 3
    brightest = [int(pixels.max()) for pixels in streamed(tmp_path, channels=1).values()]
    assert brightest == [8, 15, 23]  # without one, 65535 is white: 1999, 3999 and 5999 at most


def test_images_with_other_bands_are_bad(tmp_path):

    planes = noise(0, channels=5).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack", planarconfig="separate")
    assert str(streamed(tmp_path)["a.tif"]) == "5 channels where 3 are needed"
    assert streamed(tmp_path, channels=5)["a.tif"].shape == (5, 8, 8)


def test_a_file_that_vanishes_is_bad_and_the_others_come(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    source = open_source(str(tmp_path))
    source.read_index()
    (tmp_path / "a.png").unlink()
    a, b = decode_for_model(read_all(source, [0, 1]), image_size=8, channels=3, intensity_range=None)
    assert "cannot be read" in str(a)
    assert isinstance(b, np.ndarray)


@pytest.mark.parametrize("workers", [0, 2])
def test_reads_only_a_little_ahead(workers):
    """A million images are asked for; those read must not grow with that."""
    image, reads = encode(noise(0)), 0

    def endless():
        nonlocal reads
        for _ in range(1_000_000):
            reads += 1
            yield image

    images = decode_for_model(endless(), image_size=8, channels=3, intensity_range=None, workers=workers)
    for _ in range(100):
        next(images)
    images.close()
    assert 100 <= reads < 1000


def test_processes_only_where_they_pay(tmp_path):
    folder = open_source(str(tmp_path))
    assert worker_count(folder, 10) == 0
    assert worker_count(folder, 10_000) > 0
    assert worker_count(open_source("digits"), 10_000) == 0


CLOSE_EARLY = """
import itertools, sys
from mocokit.data.decode_pool import decode_for_model

image = open(sys.argv[1], "rb").read()
for after in (1, 2, 3, 12, 13, 14):
    images = decode_for_model(itertools.repeat(image), image_size=256, channels=3, intensity_range=None, workers=2)
    for _ in range(after):
        next(images)
    images.close()
"""


def test_closing_early_does_not_hang(tmp_path):
    """Workers that ended in the middle of sending a result would leave their parent waiting for its rest."""
    (tmp_path / "large.png").write_bytes(encode(noise(0, 512, 512)))
    command = [sys.executable, "-c", CLOSE_EARLY, str(tmp_path / "large.png")]
    subprocess.run(command, check=True, timeout=60)
