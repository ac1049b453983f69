"""What exports print: Python that makes of an image file, without mocokit, the pixels that mocokit makes of it.

It reads only files of which it makes the same and refuses all others, which `mocokit embed` is there for.
"""

import mocokit
from mocokit.data.pixels import stored_side
from mocokit.model.encoder import Encoder, EncoderSpec

README = "README.txt"
KINDS = "JPEG, PNG, WebP, GIF and BMP files of 8 bits"

# Shrunk, flattened and turned in the order of `mocokit.data.pillow`: another order rounds differently.
_READING = '''\
import numpy
from PIL import Image

def read_image(file):
    """{kinds}, as mocokit reads them: uint8 [H, W, {channels}].
    For other files use mocokit embed."""
    image = Image.open(file, formats=("JPEG", "PNG", "WEBP", "GIF", "BMP"))
    if {too_deep}:
        raise ValueError(f"{{file}}: more than 8 bits, or a transparent gray of less; use mocokit embed")
    scale = min(1, {side} / max(image.size))
    size = tuple(max(1, round(length * scale)) for length in image.size)
    if scale < 1:
        image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    turn = image.getexif().get(274, 1)
{pixels}\
    pixels = pixels.swapaxes(0, 1) if turn in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if turn in (3, 4, 7, 8) else pixels
    pixels = pixels[:, ::-1] if turn in (2, 3, 6, 7) else pixels
    return pixels.copy()

'''
_EIGHT_BITS = """\
    if image.has_transparency_data and (image.format != "BMP" or image.getextrema()[3] != (0, 0)):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    pixels = numpy.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
"""
_GRAY = """\
    luma = numpy.float32([0.299, 0.587, 0.114])
    pixels = numpy.rint(pixels.astype("float32") @ luma).astype("uint8")[:, :, None]
"""
_SIXTEEN_BITS = """\
    if image.mode.startswith("I"):
        deep = numpy.asarray(image.convert("I").convert("F").resize(size, Image.Resampling.BILINEAR), "float64")
        pixels = numpy.rint((deep.clip({low}, {high}) - {low}) * {scale}).astype("uint8")
        pixels = pixels[:, :, None].repeat({channels}, axis=2)
    else:
"""

# Pillow has no images of other numbers of channels.
_ARRAY = '''\
import numpy

def read_image(file):
    """A picture that numpy.save wrote: uint8 [H, W, {channels}]."""
    pixels = numpy.load(file)
    if pixels.dtype != "uint8" or pixels.shape[2:] != ({channels},) or max(pixels.shape[:2]) > {side}:
        raise ValueError(f"{{file}}: not uint8 [H, W, {channels}] with sides up to {side}; use mocokit embed")
    return pixels

'''


def reading_lines(spec: EncoderSpec) -> str:
    """Python that defines ``read_image(file)``: uint8 [H, W, C] as mocokit makes it, or an exception.

    A blank line ends it, and it has no other within a function: it can be pasted into an interactive Python.
    """
    channels, side = spec.channels, stored_side(spec.image_size)
    if channels not in (1, 3):
        return _ARRAY.format(channels=channels, side=side)
    pixels = _EIGHT_BITS + (_GRAY if channels == 1 else "")
    too_deep = '";16B" in str(image.tile)'
    if spec.intensity_range is not None:
        low, high = spec.intensity_range
        scale = 255 / (high - low) if high > low else 0.0
        deep = _SIXTEEN_BITS.format(low=low, high=high, scale=scale, channels=channels)
        pixels = deep + "".join(f"    {line}\n" for line in pixels.splitlines())
        too_deep += ' and not image.mode.startswith("I")'
    # Of grays of other than 8 bits Pillow does not find the transparent one.
    too_deep += ' or "transparency" in image.info and (image.mode.startswith("I") or "L;" in str(image.tile))'
    return _READING.format(kinds=_kinds(spec), channels=channels, too_deep=too_deep, side=side, pixels=pixels)


def made_by(encoder: Encoder) -> str:
    """Which network an export holds, and where its weights are from."""
    weights = encoder.origin.get("weights")
    source = f"the weights of {weights}, exported by" if weights else "trained by"
    tiles = encoder.origin.get("tiles")
    of = f" on tiles of about {tiles} x {tiles} pixels; give it such tiles, not whole images" if tiles else ""
    return f"{encoder.spec.backbone}, {source} mocokit {mocokit.__version__}{of}"


def fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def example_file(spec: EncoderSpec) -> str:
    """A name of a file that ``read_image`` takes."""
    return "image.jpg" if spec.channels in (1, 3) else "image.npy"


def claim(spec: EncoderSpec, results: str) -> str:
    """For which files the printed lines give the ``results`` of mocokit, and what to do with others."""
    low, high = spec.intensity_range or (0, 0)
    scaled = f" In arrays of more bits scale {low:g} to {high:g} to 0 to 255." if spec.intensity_range else ""
    if spec.channels not in (1, 3):
        return (
            f"Pillow has no images of {spec.channels} channels: read_image takes arrays. Other files are refused; "
            f"mocokit embed reads them.{scaled}"
        )
    return (
        f"The {results} are those of mocokit, up to rounding, for {_kinds(spec)}, of any size, EXIF orientation, "
        "palette or transparency (which is laid on white), gray or CMYK; of an animation it is the first frame. Other "
        f"files (TIFF, HEIC, more bits) are refused; mocokit embed reads them.{scaled}"
    )


def _kinds(spec: EncoderSpec) -> str:
    return KINDS + ("" if spec.intensity_range is None else ", and 16-bit gray PNG")
