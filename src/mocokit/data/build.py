"""Build one entry of the store: decode the images of a source and write pixels, index and facts to files."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mocokit.data.decode import BadImage, image_size
from mocokit.data.decode_pool import Decoded, decode_all, worker_count
from mocokit.data.image_index import SPLITS, ImageIndex, Skipped, Source, main_split
from mocokit.data.pixels import convert, convertible, stored_side
from mocokit.data.sources import read_all
from mocokit.errors import UserError
from mocokit.seeding import derive_seed

FORMAT = 7  # part of every cache key: raise it when files or pixels change
PIXELS, INDEX, FACTS = "pixels.bin", "index.npz", "facts.json"

_MEASURED_IMAGES = 100
_PROGRESS_EVERY = 64
_BLOCK = 2**22
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
    value_range: tuple[float, float] | None  # of a deep image, which is float32; None for uint8


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
    results = decode_all(
        read_all(source, order.tolist()),
        stored_side(options["image_size"]),
        worker_count(source, len(order)) if workers is None else workers,
    )
    staging = directory / "staging.bin"
    staged, skipped = _stage(results, order, image_index.names, staging, progress)
    channels = options["channels"] or _common_channels(staged)
    kept = []
    for image in staged:
        if convertible(image.shape[0], channels):
            kept.append(image)
        else:
            reason = f"{image.shape[0]} channels among images with {channels}"
            skipped.append(Skipped(image_index.names[image.position], reason))
    skipped = image_index.refused + skipped
    found = len(order) + len(image_index.refused)
    check_skipped(skipped, found, max_skipped)
    rows = np.array([image.position for image in kept], dtype=np.int64)
    counts = {split: count for split in splits if (count := int(np.isin(rows, splits[split]).sum()))}
    if main_split(splits) not in counts:
        raise UserError(f"no usable {main_split(splits)} images in {source.name}")

    intensity_range = _intensity_range(kept, options["intensity_range"])
    _write_pixels(staging, directory / PIXELS, staged, channels, intensity_range)
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
            "notes": image_index.notes(),
        },
    }
    (directory / FACTS).write_text(json.dumps(facts))


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
            content = source.read(int(indices[position]))
            sides.append(min(content.shape[1:] if isinstance(content, np.ndarray) else image_size(content)))
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
    with path.open("wb", buffering=_BLOCK) as file, closing(results):
        for done, (index, result) in enumerate(zip(order.tolist(), results, strict=True), start=1):
            if isinstance(result, BadImage):
                skipped.append(Skipped(names[index], str(result)))
            else:
                deep = result.dtype != np.uint8
                value_range = (float(result.min()), float(result.max())) if deep else None
                staged.append(_Staged(index, result.shape, value_range))
                file.write(result.data)
            if progress is not None and (done % _PROGRESS_EVERY == 0 or done == len(order)):
                progress(done, len(order))
    return staged, skipped


def _common_channels(staged: list[_Staged]) -> int:
    """The most frequent channel count, where gray and RGB count together: as RGB if there is any."""
    counts = Counter(image.shape[0] for image in staged)
    if counts[1] and counts[3]:
        counts[3] += counts.pop(1)
    return max(counts, key=lambda channels: (counts[channels], channels), default=3)


def _intensity_range(kept: list[_Staged], given: tuple[float, float] | None) -> tuple[float, float] | None:
    """The range that deep images are scaled by: one for all, to keep the relative brightness of images."""
    ranges = [image.value_range for image in kept if image.value_range is not None]
    if not ranges:
        return None
    low, high = given or (min(low for low, _ in ranges), max(high for _, high in ranges))
    return low, high


def _write_pixels(
    staging: Path, path: Path, staged: list[_Staged], channels: int, intensity_range: tuple[float, float] | None
) -> None:
    """Write the images that can have the channels one after the other, each uint8 [C, H, W] of its own size."""
    if all(image.shape[0] == channels and image.value_range is None for image in staged):  # nothing to convert
        staging.rename(path)
        return
    with staging.open("rb", buffering=_BLOCK) as source, path.open("wb", buffering=_BLOCK) as file:
        for image in staged:
            dtype = np.uint8 if image.value_range is None else np.float32
            pixels = np.fromfile(source, dtype, math.prod(image.shape)).reshape(image.shape)
            if convertible(len(pixels), channels):
                file.write(np.ascontiguousarray(convert(pixels, channels, intensity_range)).data)


def _fingerprint(path: Path, channels: int, counts: dict[str, int], arrays: dict[str, np.ndarray]) -> str:
    """Digest of pixels, sizes, labels and splits: equal wherever the same images were read from."""
    digest = hashlib.blake2b(json.dumps([channels, counts]).encode(), digest_size=16)
    for array in arrays.values():
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
