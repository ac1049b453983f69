"""The lines that exports print, executed as they stand on files of every kind, against mocokit's own reading."""

import code
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mocokit.data.decode import decode
from mocokit.data.pixels import convert, stored_side
from mocokit.deploy.export_onnx import export_onnx
from mocokit.deploy.export_timm import export_timm
from mocokit.deploy.preprocessing import made_by, reading_lines
from mocokit.model.encoder import Encoder, EncoderSpec
from tests.deploy.exporting import CLASSES, make_encoder, photographs, without
from tests.deploy.pictures import deep_pictures, other_pictures, photograph, pictures, turned
from tests.encoders import random_encoder
from tests.helpers import encode, png_of_transparent_gray

RANGE = (500.0, 3000.0)
TOLERANCE = 1e-5  # of the features' length; another rounding of a single pixel would be seen


def spec(channels: int, intensity_range: tuple[float, float] | None = None, size: int = 40) -> EncoderSpec:
    return EncoderSpec("resnet18_narrow", size, channels, (0.5,) * channels, (0.2,) * channels, intensity_range)


def read_image(wanted: EncoderSpec):
    """The printed function."""
    defined: dict = {}
    exec(reading_lines(wanted), defined)
    return defined["read_image"]


def expected(content: bytes, wanted: EncoderSpec) -> np.ndarray:
    """What the encoder gets: uint8 [H, W, C]."""
    pixels = decode(content, stored_side(wanted.image_size))
    return convert(pixels, wanted.channels, wanted.intensity_range).transpose(1, 2, 0)


# Pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_file_that_is_claimed_gives_equal_pixels(channels, deep):
    wanted = spec(channels, RANGE if deep else None)
    read = read_image(wanted)
    files = pictures(80) | (deep_pictures(80) if deep else {})
    for name, content in files.items():
        found = read(io.BytesIO(content))
        assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True), name
        np.testing.assert_array_equal(found, expected(content, wanted), err_msg=name)
    assert len(files) > 60


@settings(max_examples=60)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 8), st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_any_size_gives_equal_pixels(width, height, orientation, kind):
    """Each side is rounded for itself, and a JPEG decoder skips detail by eighths."""
    content = encode(photograph(width, height), kind, exif=turned(orientation))
    np.testing.assert_array_equal(read_image(spec(3))(io.BytesIO(content)), expected(content, spec(3)))


def test_a_narrow_picture_that_is_turned_is_taken_by_torch():
    """NumPy calls an array of one column contiguous whatever its strides are, which torch can't take if negative."""
    content = encode(photograph(2001, 5), "JPEG", exif=turned(6))
    found = read_image(spec(3, size=32))(io.BytesIO(content))
    assert found.shape[1] == 1
    np.testing.assert_array_equal(torch.tensor(found), expected(content, spec(3, size=32)))


def test_every_gray_level_at_every_opacity():
    levels = np.dstack(np.meshgrid(np.arange(256), np.arange(256))).astype(np.uint8)
    for content in (encode(Image.fromarray(levels, "LA")), encode(Image.fromarray(levels, "LA").convert("RGBA"))):
        found = read_image(spec(3, size=128))(io.BytesIO(content))
        np.testing.assert_array_equal(found, expected(content, spec(3, size=128)))


def test_other_files_are_refused_and_mocokit_reads_them():
    files = other_pictures()
    for wanted in (spec(1), spec(3), spec(1, RANGE)):
        more = {} if wanted.intensity_range else deep_pictures(80)
        for content in (files | more).values():
            with pytest.raises((OSError, ValueError), match=r"cannot identify image file|use mocokit embed"):
                read_image(wanted)(io.BytesIO(content))
            expected(content, wanted)
    broken = encode(photograph(30, 20))[:-200]
    with pytest.raises(OSError, match="truncated"):
        read_image(spec(3))(io.BytesIO(broken))


@pytest.mark.parametrize("bits", [1, 2, 4, 16])
@pytest.mark.parametrize("deep", [None, RANGE])
def test_a_transparent_gray_is_right_or_refused(bits, deep):
    content, wanted = png_of_transparent_gray(bits), spec(1, deep)
    if bits == 1:
        np.testing.assert_array_equal(read_image(wanted)(io.BytesIO(content)), expected(content, wanted))
    else:
        with pytest.raises(ValueError, match="use mocokit embed"):
            read_image(wanted)(io.BytesIO(content))


def test_other_channels_come_as_arrays(tmp_path):
    read = read_image(spec(5))
    picture = photographs(20, 80, 3)[0][:, :, [0, 1, 2, 1, 0]]
    np.save(tmp_path / "image.npy", picture)
    np.testing.assert_array_equal(read(tmp_path / "image.npy"), picture)
    for wrong in (picture[:, :, :3], picture.astype(np.uint16), np.tile(picture, (5, 1, 1))):
        np.save(tmp_path / "image.npy", wrong)
        with pytest.raises(ValueError, match="with sides up to 80; use mocokit embed"):
            read(tmp_path / "image.npy")


# Features ------------------------------------------------------------------------------------------------

ENCODERS = {
    "timm": (("resnet18_narrow", 32, 3, ()), None),
    "timm, 7/8 of the square, classifier": (("resnet18_narrow", 72, 3, CLASSES), None),
    "timm, gray, 16 bits": (("resnet18_narrow", 24, 1, ()), RANGE),
    "onnx, 7/8 of the square": (("resnet18_narrow", 72, 3, CLASSES), None),
    "onnx, gray, 16 bits": (("resnet18_narrow", 24, 1, ()), RANGE),
}
LINES = re.compile("```python\n(.*?)```", re.DOTALL)


def export(name: str, folder: Path) -> tuple[Encoder, list[str]]:
    """The encoder, and the Python in the README of its export to ``folder``."""
    arguments, intensity_range = ENCODERS[name]
    encoder = make_encoder(*arguments)
    encoder.spec = replace(encoder.spec, intensity_range=intensity_range)
    images = photographs(40, 40, encoder.spec.channels)
    if name.startswith("timm"):
        export_timm(encoder, folder, {"seed": 0}, torch.from_numpy(images))
    else:
        export_onnx(encoder, folder / "encoder.onnx", {"seed": 0}, images)
    return encoder, LINES.findall((folder / "README.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_readmes_lines_give_equal_features(name, tmp_path):
    """Executed as they stand, without mocokit, for each file anew under the name that they read."""
    encoder, lines = export(name, tmp_path)
    side = stored_side(encoder.spec.image_size)
    files = pictures(side) | (deep_pictures(side) if encoder.spec.intensity_range else {})
    (tmp_path / "files").mkdir()
    for i, content in enumerate(files.values()):
        (tmp_path / "files" / f"{i:03}.jpg").write_bytes(content)
    (tmp_path / "lines.py").write_text(lines[0])
    script = """
import shutil, numpy
from pathlib import Path
lines, found = compile(Path("lines.py").read_text(), "lines.py", "exec"), []
for file in sorted(Path("files").iterdir()):
    shutil.copyfile(file, "image.jpg")
    defined = {}
    exec(lines, defined)
    found.append(numpy.asarray(defined["logits" if "logits" in defined else "features"]))
numpy.save("found.npy", numpy.concatenate(found))
"""
    without(("mocokit", "torch", "torchvision", "timm") if name.startswith("onnx") else ("mocokit",), script, tmp_path)
    wanted = encoder.embed(sorted((tmp_path / "files").iterdir()))
    if name.startswith("timm") and encoder.classifier is not None:
        wanted = encoder.classifier(wanted).detach()
    errors = (torch.from_numpy(np.load(tmp_path / "found.npy")) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert len(errors) == len(files)
    assert not {kind: error for kind, error in zip(files, errors.tolist(), strict=True) if not error < TOLERANCE}


def test_the_lines_can_be_pasted(tmp_path, monkeypatch, capsys):
    """Line by line into an interactive Python, where a blank line ends a function."""
    _, lines = export("timm", tmp_path)
    (tmp_path / "image.jpg").write_bytes(encode(photograph(50, 40), "JPEG"))
    monkeypatch.chdir(tmp_path)
    console = code.InteractiveConsole()
    for line in lines[0].splitlines():
        console.push(line)
    assert capsys.readouterr().err == ""
    assert console.locals["features"].shape == (1, 128)


def test_an_encoder_of_tiles_asks_for_tiles():
    encoder = random_encoder(3)
    assert "tiles" not in made_by(encoder)
    encoder.origin = {**encoder.origin, "tiles": 100}
    assert made_by(encoder).endswith("on tiles of about 100 x 100 pixels; give it such tiles, not whole images")


def test_what_is_claimed(tmp_path):
    export("timm, gray, 16 bits", tmp_path)
    text = (tmp_path / "README.txt").read_text()
    assert "JPEG, PNG, WebP, GIF and BMP files of 8 bits, and 16-bit gray PNG" in text
    assert "Other files (TIFF, HEIC, more bits) are refused; mocokit embed reads them." in text
    assert "In arrays of more bits scale 500 to 3000 to 0 to 255." in text
