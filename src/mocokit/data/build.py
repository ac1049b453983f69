"""Build one entry of the store: decode the images of a source and write pixels, index and facts to files."""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mocokit.data.channels import about_colour, common_channels, is_gray
from mocokit.data.decode_pool import Decoded, decode_all, read_all, worker_count
from mocokit.data.image_index import SPLITS, ImageIndex, Skipped, Source, main_split
from mocokit.data.notes import Notes, count
from mocokit.data.pillow import BadImage
from mocokit.data.pixels import (
    ASSUMED,
    DULL,
    ENCODER_RANGE,
    FEW_LEVELS,
    assumed_range,
    convert,
    convertible,
    in_unit,
    scaled,
    stored_side,
)
from mocokit.data.tiled import size_of
from mocokit.errors import UserError
from mocokit.seeding import derive_seed

FORMAT = 11  # part of every cache key: raise it when files or pixels change
PIXELS, INDEX, FACTS = "pixels.bin", "index.npz", "facts.json"

_MEASURED_IMAGES = 100
_PROGRESS_EVERY = 64
_BLOCK = 2**22
PERCENTILES = (0.1, 99.9)  # of the pixels of deep images: what lies between them is the range
_SAMPLED_PIXELS, _SAMPLED_IN_ALL = 1000, 10_000_000  # of an image, and of a set, that the percentiles are taken of
Progress = Callable[[int, int], None]  # of the images done and in total


class TooManySkipped(UserError):
    """More images than allowed cannot be used; ``skipped`` lists them all."""

    def __init__(self, message: str, skipped: list[Skipped]) -> None:
        super().__init__(message)
        self.skipped = skipped


class _Staged(NamedTuple):
    """An image in the staging file: as decoded, with its own channels and depth."""

    position: int  # in the image index
    shape: tuple[int, int, int]
    sample: np.ndarray | None  # pixels of a deep image, which is float32; None for uint8
    extremes: tuple[float, float]
    gray: bool
    digest: bytes  # of the pixels


def prepare(source: Source, limit: int | None, seed: int, measure: bool) -> tuple[ImageIndex, float | None]:
    """The images to decode, and, to ``measure``, the median side of those to train on (of test images, if only those
    are there)."""
    image_index = source.read_index()
    split = main_split(image_index.splits)
    rows = image_index.splits[split]
    if limit is not None:
        rows = subset(rows, image_index.labels, limit, seed)
    median = median_side(source, rows) if measure else None
    return replace(image_index, splits=image_index.splits | {split: rows}), median


def build(
    source: Source,
    image_index: ImageIndex,
    median: float | None,
    options: dict[str, Any],
    directory: Path,
    max_skipped: float,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Decode what `prepare` gave into ``directory``. The pixels depend on ``options``; others: see ``open_store``."""
    splits = {split: image_index.splits[split] for split in SPLITS if split in image_index.splits}
    order = np.concatenate(list(splits.values()))
    notes = Notes()
    results = decode_all(
        read_all(source, order.tolist()),
        stored_side(options["image_size"]),
        worker_count(source, len(order)) if workers is None else workers,
        lambda position, text: notes.add(text, image_index.names[order[position]]),
        source.max_pixels,
    )
    staging = directory / "staging.bin"
    staged, skipped = _stage(results, order, image_index.names, staging, progress)
    kinds = [image.shape[0] for image in staged], [image.gray for image in staged]
    channels, colour = options["channels"], list[str]()
    if channels is None:
        channels = common_channels(*kinds)
        colour = about_colour(*kinds, [image_index.names[image.position] for image in staged], channels)
    # For an encoder of 8-bit images, beside such images, and from 0 to 1, a deep one means what it means alone.
    is_alone = options["channels"] is not None or any(image.sample is None for image in staged)
    assumed = (is_alone or all(in_unit(*image.extremes) for image in staged)) and options["intensity_range"] is None
    kept: list[_Staged] = []
    reasons: dict[int, str] = {}
    for image in staged:
        if not convertible(image.shape[0], channels):
            reasons[image.position] = f"{image.shape[0]} channels among images with {channels}"
        elif assumed and image.sample is not None:
            try:
                white = assumed_range(*image.extremes)[1]
                notes.add(ASSUMED, image_index.names[image.position])
                if (image.extremes[1] - image.extremes[0]) * 256 < FEW_LEVELS * white:
                    notes.add(DULL, image_index.names[image.position])
            except BadImage as error:
                reasons[image.position] = str(error)
        if image.position not in reasons:
            kept.append(image)
    skipped += [Skipped(image_index.names[position], reason) for position, reason in reasons.items()]
    skipped = image_index.refused + skipped
    found = len(order) + len(image_index.refused)
    check_skipped(skipped, found, max_skipped)
    rows = np.array([image.position for image in kept], dtype=np.int64)
    counts = {split: number for split in splits if (number := int(np.isin(rows, splits[split]).sum()))}
    if main_split(splits) not in counts:
        raise UserError(f"no usable {main_split(splits)} images in {source.name}")

    intensity_range, lines = _intensity_range(kept, options["intensity_range"], assumed, image_index.names)
    _write_pixels(staging, directory / PIXELS, staged, {image.position for image in kept}, channels, intensity_range)
    staging.unlink(missing_ok=True)
    arrays = {"sizes": np.array([image.shape[1:] for image in kept], dtype=np.int32)}
    if image_index.labels is not None:
        arrays["labels"] = image_index.labels[rows]
    names = "\0".join(image_index.names[row] for row in rows).encode(errors="surrogatepass")
    np.savez(directory / INDEX, names=np.frombuffer(names, dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    facts = {
        # The second: later commands ask for the channels and the range that were found here.
        "serves": [options, options | {"intensity_range": intensity_range, "channels": channels}],
        "median": median,
        "found": found,
        "splits": counts,
        "store": {
            "name": source.name,
            "image_size": options["image_size"],
            "channels": channels,
            "label_names": image_index.label_names,
            "intensity_range": intensity_range,
            "fingerprint": _fingerprint(directory / PIXELS, channels, counts, arrays),
            "skipped": skipped,
            "notes": [*image_index.notes, *notes.lines(), *lines, *colour, *_copies(kept, image_index.names)],
            "label_notes": image_index.label_notes(),
        },
    }
    write_facts(directory, facts)


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Write what is known of an entry, under a digest of it and of its index."""
    text = json.dumps(facts)
    (directory / FACTS).write_text(f"{_digest(directory, text)}\n{text}")


def read_facts(directory: Path) -> dict[str, Any]:
    """Inverse of `write_facts`; ValueError if either file is not as it was written."""
    digest, _, text = (directory / FACTS).read_text().partition("\n")
    if digest != _digest(directory, text):
        raise ValueError(f"{directory} is damaged")
    facts: dict[str, Any] = json.loads(text)
    return facts


def _digest(directory: Path, text: str) -> str:
    return hashlib.blake2b(text.encode() + (directory / INDEX).read_bytes(), digest_size=16).hexdigest()


def check_skipped(skipped: list[Skipped], found: int, max_skipped: float) -> None:
    """Raise TooManySkipped if more than the fraction ``max_skipped`` of the images found is skipped."""
    if len(skipped) > max_skipped * found:
        name, reason = skipped[0]
        raise TooManySkipped(
            f"{len(skipped)} of {found} images ({len(skipped) / found:.1%}) cannot be used, the first is "
            f"{name}: {reason}; repair or remove them, or allow more with --max-skipped",
            skipped,
        )


def subset(indices: np.ndarray, labels: np.ndarray | None, limit: int, seed: int) -> np.ndarray:
    """A random subset of ``limit`` indices in ascending order, with classes as equal as they can be; images without a
    label come last."""
    generator = np.random.default_rng(derive_seed(seed, "limit"))
    shuffled = generator.permutation(indices)
    if labels is not None:
        # Deal the classes out in rounds: one image of each class, then a second one, and so on.
        values = labels[shuffled]
        rounds = np.empty(len(shuffled), dtype=np.int64)
        for value in np.unique(values):
            members = np.flatnonzero(values == value)
            rounds[members] = np.arange(len(members)) if value >= 0 else len(shuffled)
        shuffled = shuffled[np.argsort(rounds, kind="stable")]
    return np.sort(shuffled[:limit])


def median_side(source: Source, indices: np.ndarray) -> float:
    """Median of the shorter side, in pixels, of 100 evenly spaced images at most; nan if none can be read."""
    sides: list[int] = []
    for position in np.linspace(0, len(indices) - 1, min(len(indices), _MEASURED_IMAGES)).round().astype(int):
        with suppress(BadImage):
            (image,) = read_all(source, [int(indices[position])])
            sides.append(min(size_of(image, source.max_pixels)))
    return float(np.median(sides)) if sides else math.nan


def _stage(
    results: Generator[Decoded, None, None],
    order: np.ndarray,
    names: Sequence[str],
    path: Path,
    progress: Progress | None,
) -> tuple[list[_Staged], list[Skipped]]:
    """Write the decoded images at ``order`` to ``path``; what was written, and what cannot be used."""
    staged: list[_Staged] = []
    skipped: list[Skipped] = []
    most = max(16, min(_SAMPLED_PIXELS, _SAMPLED_IN_ALL // max(1, len(order))))
    with path.open("wb", buffering=_BLOCK) as file, closing(results):
        for done, (index, result) in enumerate(zip(order.tolist(), results, strict=True), start=1):
            if isinstance(result, BadImage):
                skipped.append(Skipped(names[index], str(result)))
            else:
                deep = result.dtype != np.uint8
                sample = _sampled(result, most, index) if deep else None
                extremes = float(result.min()), float(result.max())
                digest = hashlib.blake2b(result.data, digest_size=8).digest()
                staged.append(_Staged(index, result.shape, sample, extremes, is_gray(result), digest))
                file.write(result.data)
            if progress is not None and (done % _PROGRESS_EVERY == 0 or done == len(order)):
                progress(done, len(order))
    return staged, skipped


def _copies(kept: list[_Staged], names: Sequence[str]) -> list[str]:
    """A line on images with the same pixels as an earlier one, or none."""
    firsts: dict[tuple[Any, ...], int] = {}
    pairs = [(firsts.setdefault((image.digest, image.shape), image.position), image.position) for image in kept]
    pairs = [(first, copy) for first, copy in pairs if first != copy]
    if not pairs:
        return []
    first, copy = (names[position] for position in pairs[0])
    are = count(len(pairs), "image is an exact copy", "images are exact copies")
    return [f"{are} of another; the first: {first} = {copy}"]


def _sampled(pixels: np.ndarray, most: int, position: int) -> np.ndarray:
    """Pixels at random places, which the image's position decides."""
    values = pixels.reshape(-1)
    if len(values) > most:
        values = values[np.random.default_rng(position).integers(0, len(values), most)]
    return values.copy()


def _intensity_range(
    kept: list[_Staged], given: tuple[float, float] | None, assumed: bool, names: Sequence[str]
) -> tuple[tuple[float, float] | None, list[str]]:
    """The range that deep images are scaled by, one for all, to keep the relative brightness of images; and lines that
    say so. None where each has the range that its values suggest.

    It lies between two percentiles of their pixels: a hot pixel would leave the others two gray levels.
    """
    samples = [image.sample for image in kept if image.sample is not None]
    if assumed or not samples:
        return None, []
    values = np.concatenate(samples)
    first = next(names[image.position] for image in kept if image.sample is not None)
    if given:
        low, high = given
        origin = ENCODER_RANGE
    else:
        # Outwards, so that few pixels keep their minimum and maximum.
        low = float(np.percentile(values, PERCENTILES[0], method="lower"))
        high = float(np.percentile(values, PERCENTILES[1], method="higher"))
        origin = f"percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of their pixels"
        if low == high:  # nearly all pixels are equal: the others are what is in the images
            low, high, origin = float(values.min()), float(values.max()), "all there is"
    lines = [f"{count(len(samples), 'image', 'images')} {scaled(low, high, origin)}; the first is {first}"]
    most = np.percentile(values, (1, 99)).tolist()
    levels = 256 * (min(most[1], high) - max(most[0], low)) / (high - low) if high > low else 0
    if levels < FEW_LEVELS:
        lines.append(
            f"warning: nearly all pixels of these images, {most[0]:g} to {most[1]:g}, share {max(1, round(levels))} of "
            "256 gray levels; remove outliers, or save the images with 8 bits of the range that matters"
        )
    return (low, high), lines


def _write_pixels(
    staging: Path,
    path: Path,
    staged: list[_Staged],
    kept: set[int],
    channels: int,
    intensity_range: tuple[float, float] | None,
) -> None:
    """Write the images that are ``kept`` one after the other, each uint8 [C, H, W] of its own size."""
    if all(image.shape[0] == channels and image.sample is None for image in staged):  # nothing to convert
        staging.rename(path)
        return
    with staging.open("rb", buffering=_BLOCK) as source, path.open("wb", buffering=_BLOCK) as file:
        for image in staged:
            dtype = np.uint8 if image.sample is None else np.float32
            pixels = np.fromfile(source, dtype, math.prod(image.shape)).reshape(image.shape)
            if image.position in kept:
                file.write(np.ascontiguousarray(convert(pixels, channels, intensity_range)).data)


def _fingerprint(path: Path, channels: int, counts: dict[str, int], arrays: dict[str, np.ndarray]) -> str:
    """Digest of pixels, sizes, labels and splits: equal wherever the same images were read from."""
    digest = hashlib.blake2b(json.dumps([channels, counts]).encode(), digest_size=16)
    for array in arrays.values():
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
