"""What Pillow opens: unused alpha, formats by their content, and HEIC without its package."""

import io
import os
import signal
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mocokit.data import pillow
from mocokit.data.decode import decode
from mocokit.data.pillow import BadImage, looks_like_an_image, open_image, translated_errors
from tests.helpers import encode, noise

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(500)


def bmp32(pixels: np.ndarray, alpha: int) -> bytes:
    """A 32-bit BMP with masks for all four bytes, the last of which is ``alpha``."""
    height, width, _ = pixels.shape
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(52)
    fourth = np.full((height, width, 1), alpha, np.uint8)
    rows = np.concatenate([pixels[::-1, :, ::-1], fourth], axis=2).tobytes()
    return struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


@pytest.mark.parametrize("alpha", [0, 255])
def test_unused_alpha_of_a_bmp_is_opaque(alpha: int) -> None:
    pixels = noise(1, 5, 7)
    data = bmp32(pixels, alpha)
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    np.testing.assert_array_equal(decode(data), pixels.transpose(2, 0, 1))


def test_alpha_of_a_bmp_that_is_used_lies_on_white() -> None:
    data = bytearray(bmp32(np.zeros((1, 2, 3), np.uint8), 0))
    data[-1] = 255
    np.testing.assert_array_equal(decode(bytes(data))[0], [[255, 0]])


@pytest.mark.parametrize(("kind", "options"), [("JPEG2000", {}), ("TGA", {}), ("AVIF", {"quality": 100})])
def test_other_formats_of_pillow(kind: str, options: dict[str, object]) -> None:
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(decode(encode(pixels, kind, **options)).mean(axis=(1, 2)), (200, 100, 50), atol=3)


def test_heic_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow, "pillow_heif", None)
    with pytest.raises(BadImage, match=r"pip install 'mocokit\[heic\]'"):
        decode(HEIC)


def test_images_are_known_by_their_content() -> None:
    pixels = noise(1, 16, 16)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"):
        assert looks_like_an_image(encode(pixels, kind)[:16]), kind
    assert looks_like_an_image(HEIC[:16])
    for other in (b"", b"BM, a firm\nof lawyers", b"%PDF-1.7", b"RIFF\0\0\0\0WAVEfmt ", b"PK\3\4"):
        assert not looks_like_an_image(other[:16]), other


def test_decoders_that_need_much_memory_get_smaller_images() -> None:
    for kind in ("WEBP", "JPEG2000"):
        data = encode(noise(0, 8, 8), kind)
        with translated_errors(128):
            assert open_image(data).size == (8, 8)
        with pytest.raises(BadImage, match="megapixels of 8 bytes"), translated_errors(127):
            open_image(data)
    with translated_errors(64):
        assert open_image(encode(noise(0, 8, 8))).size == (8, 8)


def process_settings() -> tuple[object, ...]:
    return ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([63, 64])), max_size=12))
def test_threads_have_their_own_limits_and_leave_the_process_as_it_was(steps: list[tuple[int, int]]) -> None:
    """Each step lets one of three threads in or out; whichever is first or last."""
    data, before, inside = encode(noise(0, 8, 8)), process_settings(), {}
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        for number, limit in (*steps, *((number, 0) for number in range(3))):
            if number in inside:
                _, decoding = inside.pop(number)
                threads[number].submit(decoding.__exit__, None, None, None).result()
            elif limit:
                decoding = translated_errors(limit)
                threads[number].submit(decoding.__enter__).result()
                inside[number] = limit, decoding
            if inside:
                assert (ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[0][:3]) == (False, ("ignore", None, Warning))
            else:
                assert process_settings() == before
            for other, (limit, _) in inside.items():
                opened = threads[other].submit(open_image, data)
                assert isinstance(opened.exception(), BadImage) == (limit < 64)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_is_forked_while_threads_decode_decodes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1234)
    before, data = process_settings(), encode(noise(0, 8, 8))
    with ThreadPoolExecutor(1) as thread:
        decoding = translated_errors()
        thread.submit(decoding.__enter__).result()
        with pillow._lock:  # as if that thread were about to leave
            if (child := os.fork()) == 0:
                signal.alarm(10)
                os._exit(decode(data).shape != (3, 8, 8) or process_settings() != before)
        thread.submit(decoding.__exit__, None, None, None).result()
    assert os.waitpid(child, 0)[1] == 0
    assert process_settings() == before
