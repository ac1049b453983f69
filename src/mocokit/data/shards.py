"""Parquet files, tar shards in webdataset layout and sets of the Hugging Face hub, as image sources.

All are read once, as streams of the library ``datasets`` (the extra ``hf``), on their way into the store.
"""

import hashlib
import re
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from mocokit.data.cache import cache_directory, cache_errors
from mocokit.data.layout import SPLIT_FOLDERS, SPLITS, Listing
from mocokit.errors import UserError

PARQUET = ".parquet"
HUB = "hf:"
_LABELS = ("label", "labels", "cls", "fine_label", "class")
_KINDS = {PARQUET: "parquet", ".tar": "webdataset"}


def shards_in(path: Path) -> list[Path]:
    """The Parquet file itself, or the shards directly in a folder that holds nothing but them, sorted."""
    if path.is_file():
        return [path]
    files = [file for file in path.iterdir() if not file.name.startswith((".", "_"))]
    kinds = {file.suffix.lower() for file in files}
    return sorted(files) if len(kinds) == 1 and kinds <= set(_KINDS) else []


class ShardSource:
    """Local shards, or ``hf:NAME[:CONFIG]``; the encoded images wait in a temporary file to be decoded."""

    decoded = False

    def __init__(self, data: str, shards: list[Path]) -> None:
        self.data, self.shards = data, shards
        self.name = re.sub(r"\W+", "-", data.removeprefix(HUB)) if not shards else Path(data).stem or "data"
        self._spool: IO[bytes] | None = None
        self._ends: list[int] = [0]

    def fingerprint(self) -> str:
        """From path, size and time of each shard; of a set of the hub its name alone."""
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.shards]
        return f"shards/{self.data if not stamps else hashlib.blake2b(repr(stamps).encode()).hexdigest()}"

    def scan(self) -> Listing:
        root = cache_directory()
        with cache_errors(root):
            self._spool = tempfile.TemporaryFile(dir=root)  # noqa: SIM115 - it stays open for read()
        names: list[str] = []
        labels: list[int | None] = []
        classes: tuple[str, ...] | None = None
        splits: dict[str, np.ndarray] = {}
        for split, place, stream in self._streams():
            start = len(names)
            try:
                image, label, classes = _columns(stream, place)
                for row in _undecoded(stream, image):
                    content = (row[image] or {}).get("bytes") or b""
                    with cache_errors(root):
                        self._spool.write(content)
                    self._ends.append(self._ends[-1] + len(content))
                    names.append(f"{Path(place).name}/{len(names):08d}")
                    labels.append(row[label] if label else None)
            except (OSError, ValueError, RuntimeError) as error:
                raise _unreadable(place, error) from error
            added = np.arange(start, len(names), dtype=np.int64)
            splits[split] = np.concatenate([splits.get(split, added[:0]), added])
        if not names:
            raise UserError(f"no images in {self.data}")
        splits = {split: splits[split] for split in SPLITS if split in splits}
        if any(value is None or value < 0 for value in labels):
            return Listing(names, splits)
        values = np.array(labels, dtype=np.int64)
        return Listing(names, splits, values, classes or tuple(map(str, range(values.max() + 1))))

    def read(self, index: int) -> bytes:
        assert self._spool is not None, "scan() comes first"
        self._spool.seek(self._ends[index])
        return self._spool.read(self._ends[index + 1] - self._ends[index])

    def _streams(self) -> list[tuple[str, str, Any]]:
        """(split, place for messages, stream) of every shard, or of every split of a set of the hub."""
        try:
            import datasets
        except ImportError as error:
            raise UserError(f"{self.data} needs datasets: pip install 'mocokit[hf]'") from error
        place = self.data
        try:
            if not self.shards:
                name, _, config = self.data.removeprefix(HUB).partition(":")
                found = datasets.get_dataset_split_names(name, config or None)
                return [
                    (SPLIT_FOLDERS[split], f"{self.data}/{split}",
                     datasets.load_dataset(name, config or None, split=split, streaming=True))
                    for split in found if split in SPLIT_FOLDERS
                ]  # fmt: skip
            streams = []
            for shard in self.shards:
                place = str(shard)
                kind = _KINDS[shard.suffix.lower()]
                stream = datasets.load_dataset(kind, data_files=[place], split="train", streaming=True)
                split = SPLIT_FOLDERS.get(re.split(r"[-_.]", shard.name.lower())[0], "train")
                streams.append((split, place, stream))
            return streams
        except Exception as error:  # the hub's client raises errors of many libraries
            raise _unreadable(place, error) from error


def _unreadable(place: str, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{place} cannot be read ({reason}); is it damaged, misnamed, or out of reach?")


def _columns(stream: Any, place: str) -> tuple[str, str | None, tuple[str, ...] | None]:
    """The image column, the label column if there is one, and the classes if it names them."""
    row = next(iter(_undecoded(stream, None)), {})
    images = [name for name, value in row.items() if isinstance(value, dict) and value.get("bytes")]
    images += [name for name, value in row.items() if isinstance(value, bytes)]
    if not images:
        raise UserError(f"{place} has no column of images among {', '.join(row) or 'no rows'}")
    label = next((name for name in _LABELS if isinstance(row.get(name), int)), None)
    names = getattr((stream.features or {}).get(label), "names", None)
    return images[0], label, names and tuple(names)


def _undecoded(stream: Any, image: str | None) -> Any:
    """The stream with images as {bytes, path}: the store decodes, by its own rules."""
    import datasets

    raw = stream
    for name, feature in (stream.features or {}).items():
        kind = getattr(feature, "dtype", "")
        if name == image or isinstance(feature, datasets.Image) or (image is None and kind == "binary"):
            raw = raw.cast_column(name, datasets.Image(decode=False))
    return raw
