"""Images decoded on the fly are those of the store, and only a few of them are in memory."""

import subprocess
import sys

import numpy as np
import pytest

from mocokit.data.decode import BadImage
from mocokit.data.sources import open_source, read_all
from mocokit.data.store import open_store
from mocokit.data.stream import stream
from mocokit.data.workers import worker_count
from tests.helpers import archive, encode, noise, png16, write_images

SIZES = [(8, 8), (40, 30), (5, 31), (64, 16), (16, 16)]


def streamed(data, image_size=8, channels=3, intensity_range=None, workers=0):
    source = open_source(str(data))
    listing = source.scan()
    images = read_all(source, range(len(listing.names)))
    options = {
        "image_size": image_size,
        "channels": channels,
        "intensity_range": intensity_range,
        "workers": workers,
    }
    return dict(zip(listing.names, stream(images, **options), strict=True))


def assert_equals_store(data, images, **options):
    store = open_store(str(data), image_size=8, image_size_cap=8, max_skipped=1.0, **options)
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
    brightest = [int(pixels.max()) for pixels in streamed(tmp_path, channels=1).values()]
    assert brightest == [255, 255, 255]  # without one, each by its own


def test_images_with_other_bands_are_bad(tmp_path):
    import tifffile

    planes = noise(0, channels=5).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack", planarconfig="separate")
    assert str(streamed(tmp_path)["a.tif"]) == "5 channels where 3 are needed"
    assert streamed(tmp_path, channels=5)["a.tif"].shape == (5, 8, 8)


def test_a_file_that_vanishes_is_bad_and_the_others_come(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    source = open_source(str(tmp_path))
    source.scan()
    (tmp_path / "a.png").unlink()
    a, b = stream(read_all(source, [0, 1]), image_size=8, channels=3, intensity_range=None)
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

    images = stream(endless(), image_size=8, channels=3, intensity_range=None, workers=workers)
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
from mocokit.data.stream import stream

image = open(sys.argv[1], "rb").read()
for after in (1, 2, 3, 12, 13, 14):
    images = stream(itertools.repeat(image), image_size=256, channels=3, intensity_range=None, workers=2)
    for _ in range(after):
        next(images)
    images.close()
"""


def test_closing_early_does_not_hang(tmp_path):
    """Workers that ended in the middle of sending a result would leave their parent waiting for its rest."""
    (tmp_path / "large.png").write_bytes(encode(noise(0, 512, 512)))
    command = [sys.executable, "-c", CLOSE_EARLY, str(tmp_path / "large.png")]
    subprocess.run(command, check=True, timeout=60)
