"""Facts are what the file was saved with, whatever its format and source; no file is too damaged to be asked."""

import io
import os
import random
import struct
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from mocokit.data.decode import MAX_FILE_BYTES
from mocokit.data.decode_pool import ImageFile as File
from mocokit.data.shards import ShardSource
from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from mocokit.reporting import file_facts
from mocokit.reporting.file_facts import FileFacts, facts_of, read_facts
from mocokit.reporting.images import ReportImages
from tests.helpers import archive, encode, noise, png_header, write_images

KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "JPEG2000", "TGA")
TAKEN = datetime(2015, 3, 1, 10, 20, 30)


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this module asks of a file must not decode it; encoding and stores are made before, or in processes."""

    def facts_without_pixels(*arguments: object) -> FileFacts:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
            return read(*arguments)

    read = file_facts._read
    monkeypatch.setattr(file_facts, "_read", facts_without_pixels)


def exif(make: object = "Maker", model: object = "M 1", taken: object = "2015:03:01 10:20:30", **tags: object) -> bytes:
    """A block with these values; None leaves a tag out. ``tags`` by name."""
    block = Image.Exif()
    main = {"Make": make, "Model": model, **{name: tags[name] for name in tags if name == "DateTime"}}
    inside = {"DateTimeOriginal": taken, **{name: tags[name] for name in tags if name != "DateTime"}}
    for ifd, values in ((block, main), (block.get_ifd(ExifTags.IFD.Exif), inside)):
        for name, value in values.items():
            if value is not None:
                ifd[ExifTags.Base[name]] = value
    return block.tobytes()


# Quality ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "optimize": True}])
def test_quality_is_the_one_that_the_file_was_saved_with(options):
    for quality in range(1, 101):
        for channels in (1, 3):
            data = encode(noise(quality, channels=channels), "JPEG", quality=quality, **options)
            assert facts_of(data).quality == quality


def test_quality_of_tables_with_more_than_eight_bits():
    """Numbers above 255, which baseline files cut off: by the formula of jcparam.c, one by one."""
    data = encode(noise(0), "JPEG", quality=50)  # its table is the standard one
    start = data.index(b"\xff\xdb")
    standard = list(data[start + 5 : start + 69])
    for quality in range(1, 50):
        table = [max(1, min(32767, (number * (5000 // quality) + 50) // 100)) for number in standard]
        segment = b"\xff\xdb" + struct.pack(">HB64H", 131, 0x10, *table)
        assert facts_of(data[:start] + segment + data[start + 69 :]).quality == quality


def test_tables_of_other_makers_have_no_quality():
    standard = Image.open(io.BytesIO(encode(noise(0), "JPEG", quality=80))).quantization[0]
    for place in (0, 7, 63):
        table = list(standard)
        table[place] += 1
        assert facts_of(encode(noise(0), "JPEG", qtables=[table, table])).quality is None
    assert facts_of(encode(noise(0), "JPEG", qtables=[standard, [9] * 64])).quality == 80
    assert facts_of(encode(noise(0))).quality is None


# Formats and EXIF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_format_and_size(kind):
    facts = facts_of(encode(noise(0, height=11, width=23), kind))
    assert facts._replace(quality=None) == FileFacts(kind, (23, 11))


def test_size_is_as_stored_whatever_the_orientation():
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = 6
    assert facts_of(encode(noise(0, height=11, width=23), "JPEG", exif=block)).size == (23, 11)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_camera_and_time(kind):
    facts = facts_of(encode(noise(0), kind, exif=exif()))
    assert facts[-2:] == ("Maker M 1", TAKEN)
    assert facts.format == ("JPEG" if kind == "MPO" else kind)


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON", "Nikon D70\0\0", "Nikon D70"),
        ("Maker  \n", None, "Maker"),
        (None, " M\n1 ", "M 1"),
        (None, None, None),
        (" ", "\0", None),
        ("<script>", "a\x1b[31mb", "<script> a[31mb"),
        ("m" * 500, "x", "m" * 60 + " x"),
        (None, "x" * 100_000, "x" * 60),
    ],
)
def test_names_of_cameras(make, model, camera):
    assert facts_of(encode(noise(0), exif=exif(make, model))).camera == camera


@pytest.mark.parametrize(
    ("stated", "taken"),
    [
        ({"taken": None}, None),
        ({"taken": "0000:00:00 00:00:00"}, None),
        ({"taken": "    :  :     :  :  "}, None),
        ({"taken": "2015:02:30 10:20:30"}, None),
        ({"taken": "yesterday"}, None),
        ({"taken": "2015:03:01 10:20:30\0"}, TAKEN),
        ({"taken": None, "DateTimeDigitized": "2015:03:01 10:20:30", "DateTime": "2020:01:01 00:00:00"}, TAKEN),
        ({"taken": "unknown", "DateTime": "2015:03:01 10:20:30"}, TAKEN),
        ({"DateTimeDigitized": "2020:01:01 00:00:00", "DateTime": "2020:01:01 00:00:00"}, TAKEN),
    ],
)
def test_the_time_is_that_of_taking_where_it_is_valid(stated, taken):
    assert facts_of(encode(noise(0), "JPEG", exif=exif(**stated))).taken == taken


@pytest.mark.parametrize("pixels", [np.zeros((9, 14, 5), np.uint8), np.zeros((9, 14))], ids=["bands", "float64"])
def test_tiff_files_that_pillow_does_not_know(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "a.tif")
    for file in (File(str(tmp_path / "a.tif")), (tmp_path / "a.tif").read_bytes()):
        assert facts_of(file) == FileFacts("TIFF", (14, 9))


# Damage -----------------------------------------------------------------------------------------------------

FILES = {kind: encode(noise(3, 20, 30), kind, exif=exif()) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")}
FILES |= {kind: encode(noise(3, 20, 30), kind) for kind in ("GIF", "BMP", "JPEG2000", "PPM")}
NOTHING = FileFacts()


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files_say_what_is_left_or_nothing(kind):
    data, whole = FILES[kind], facts_of(FILES[kind])
    for length in random.Random(0).sample(range(len(data)), 60):
        for fact, true in zip(facts_of(data[:length]), whole, strict=True):
            assert fact in (None, true)


@given(st.sampled_from(sorted(FILES)), st.data())
def test_no_damage_is_too_much(kind, data):
    damaged = bytearray(FILES[kind])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    facts = facts_of(bytes(damaged))
    assert facts.size is None or min(facts.size) > 0


@given(st.binary(max_size=300))
def test_what_is_no_image_has_no_camera(data):
    assert facts_of(data)[2:] == NOTHING[2:]


def test_a_damaged_block_leaves_the_other_facts():
    data = encode(noise(0), "JPEG", quality=60, exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert facts_of(data) == FileFacts("JPEG", (8, 8), 60)


def test_huge_images_and_files(tmp_path):
    assert facts_of(png_header(12_000, 8_000)).size == (12_000, 8_000)
    assert facts_of(png_header(60_000, 60_000)) == NOTHING
    assert facts_of(png_header(60_000, 60_000), max_pixels=10**10).size == (60_000, 60_000)
    (tmp_path / "huge.png").write_bytes(png_header(8, 8))
    os.truncate(tmp_path / "huge.png", MAX_FILE_BYTES + 1)
    assert facts_of(File(str(tmp_path / "huge.png"))) == NOTHING


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "missing.png", "."):
        assert facts_of(File(str(tmp_path / name))) == NOTHING
    assert facts_of(b"") == facts_of(b"<html>404</html>") == facts_of(noise(0)) == NOTHING


# Sources ----------------------------------------------------------------------------------------------------


def photographs(folder, images=12):
    """Test and training images, each of a width and quality of its own."""
    for number in range(images):
        path = folder / ("test" if number % 3 == 0 else "train") / f"{number:02d} ü.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(number, 16, 20 + number), "JPEG", quality=50 + number, exif=exif()))
    return folder


def report_images(data, most=100_000):
    return ReportImages.of(open_store(str(data), image_size=16), None, 0, most)


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".tar.xz"])
def test_facts_are_those_of_the_rows(tmp_path, suffix):
    folder = photographs(tmp_path / "data")
    data = archive(folder, tmp_path / f"data{suffix}") if suffix else folder
    images = report_images(data)
    facts = read_facts(open_source(str(data)), images, 0)
    assert list(facts) == list(range(12))
    for name, its in zip(images.names, facts.values(), strict=True):
        number = int(name.split("/")[1][:2])
        assert its == FileFacts("JPEG", (20 + number, 16), 50 + number, "Maker M 1", TAKEN)


def test_of_many_images_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(file_facts, "MOST", 5)
    folder = photographs(tmp_path / "data", 40)
    images, source = report_images(folder, most=20), open_source(str(folder))
    first, again, other = (read_facts(source, images, seed) for seed in (0, 0, 1))
    assert first == again
    assert list(first) != list(other)
    for facts in (first, other):
        assert len(facts) == 5
        assert list(facts) == sorted(facts)
        assert [its.quality for its in facts.values()] == [
            50 + int(images.names[row].split("/")[1][:2]) for row in facts
        ]


def test_names_that_are_not_utf8_and_files_that_are_gone(tmp_path):
    photographs(tmp_path / "data")
    os.rename(tmp_path / "data/train/01 ü.jpg", os.fsencode(tmp_path) + b"/data/train/01 \xe9.jpg")
    images = report_images(tmp_path / "data")
    (tmp_path / "data/train/02 ü.jpg").unlink()
    (tmp_path / "data/train/04 ü.jpg").write_bytes(b"damaged")
    facts = read_facts(open_source(str(tmp_path / "data")), images, 0)
    found = {images.names[row].split("/")[1][:2]: its.quality for row, its in facts.items()}
    assert found == {f"{number:02d}": None if number in (2, 4) else 50 + number for number in range(12)}


@pytest.mark.parametrize("blocks", [2, 100])
def test_of_shards_few_blocks_are_read(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(file_facts, "BLOCKS", blocks)
    for shard in range(3):
        files = [encode(noise(n), "JPEG", quality=n) for n in range(30 * shard + 1, 30 * shard + 31)]
        pq.write_table(pa.table({"image": files}), tmp_path / f"train-{shard}.parquet", row_group_size=6)
    images, read = report_images(tmp_path), []
    fetch = ShardSource._block
    monkeypatch.setattr(ShardSource, "_block", lambda *place: (read.append(place[1:]), fetch(*place))[1])
    facts = read_facts(open_source(str(tmp_path)), images, 0)
    assert len(facts) == min(90, 6 * blocks)
    assert len(set(read)) == min(15, blocks)
    assert [its.quality for its in facts.values()] == [row + 1 for row in facts]


def test_pixels_have_no_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(file_facts, "MOST", 9)
    data = tmp_path / "images.npy"
    np.save(data, np.stack([noise(seed) for seed in range(20)]))
    facts = read_facts(open_source(str(data)), report_images(data), 0)
    assert list(facts.values()) == [NOTHING] * 9
    assert max(facts) > 8


def test_files_of_a_folder_are_not_read_to_the_end(tmp_path, monkeypatch):
    write_images(tmp_path / "data", [f"{n}.png" for n in range(3)], height=200, width=200)
    images = report_images(tmp_path / "data")
    monkeypatch.setattr(File, "read", lambda self: pytest.fail("the whole file was read"))
    assert [its.size for its in read_facts(open_source(str(tmp_path / "data")), images, 0).values()] == [(200, 200)] * 3
