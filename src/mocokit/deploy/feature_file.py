"""The feature file: one row an image, as Parquet, .npz or .npy; written by ``mocokit embed``, read by search.

Columns: ``path`` inside the data, ``split``, ``label`` (class name), ``feature`` [D], and of a fine-tuned encoder
``predicted`` and ``probability``. Only a block of the features is in memory at a time (an .npz is read whole).
"""

import csv
import hashlib
import itertools
import json
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mocokit.errors import UserError
from mocokit.files import replacing, write_json
from mocokit.model.encoder import Encoder

FORMAT = "mocokit-features-1"
SUFFIXES = (".parquet", ".npz", ".npy")
BLOCK_ROWS = 16_384  # written and read at once
METADATA_KEY = b"mocokit"  # in the schema of a Parquet file

_DAMAGE = (
    OSError, ValueError, LookupError, TypeError, EOFError, MemoryError, RecursionError, zipfile.BadZipFile,
)  # fmt: skip


class Named(NamedTuple):
    """Path and label of a row, None where the feature file does not give them."""

    path: str | None = None
    label: str | None = None


def encoder_fingerprint(encoder: Encoder) -> str:
    """Digest of all that decides about an encoder's output: weights, preprocessing and classes."""
    digest = hashlib.blake2b(json.dumps([encoder.spec.to_dict(), encoder.classes]).encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def printable(name: str) -> str:
    """A path as every format can hold it: a file name need not be UTF-8; what is not gets backslashes."""
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


# Writing --------------------------------------------------------------------------------------------------


class Sidecars(NamedTuple):
    """The two files next to an .npy: its other columns and its metadata."""

    rows: Path
    metadata: Path


def sidecars(path: Path) -> Sidecars:
    """Paths of the sidecars of an .npy."""
    return Sidecars(path.with_name(f"{path.name}.csv"), path.with_name(f"{path.name}.json"))


def check_format(path: Path) -> None:
    """See that ``path`` has the suffix of a feature file.

    Raises:
        UserError: an unknown suffix.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: the name of a feature file ends in {', '.join(SUFFIXES)}")


def feature_table(features: np.ndarray, columns: dict[str, list[Any]]) -> pa.Table:
    """Rows of a feature file: ``features`` [N, D] float32 or float16, after the other columns, each of N values."""
    vector = pa.list_(pa.from_numpy_dtype(features.dtype), features.shape[1])
    types = {"probability": pa.float32()}
    arrays = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    arrays["feature"] = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), type=vector)
    return pa.table(arrays)


def write_features(path: Path, tables: Iterable[pa.Table], rows: int, metadata: dict[str, Any]) -> None:
    """Write a feature file whole; the same rows give the same bytes, however they are cut into tables.

    Args:
        path: replaced; the suffix decides about the format. An .npy holds the features alone; ``PATH.csv``
            has the other columns and ``PATH.json`` the metadata.
        tables: all rows in order, from `feature_table`; at least one table.
        rows: how many they are together.
        metadata: plain values.

    Raises:
        OSError: the disk is full, or ``path`` is not writable.
    """
    write = {".parquet": _write_parquet, ".npz": _write_npz, ".npy": _write_npy}[path.suffix]
    write(path, _blocks(tables), rows, {"format": FORMAT} | metadata)


def _blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `BLOCK_ROWS`."""
    held: pa.Table | None = None
    for table in tables:
        held = table if held is None else pa.concat_tables([held, table])
        while len(held) >= BLOCK_ROWS:
            yield held[:BLOCK_ROWS].combine_chunks()
            held = held[BLOCK_ROWS:]
    if held is not None and len(held):
        yield held.combine_chunks()


def _write_parquet(path: Path, blocks: Iterator[pa.Table], rows: int, metadata: dict[str, Any]) -> None:
    first = next(blocks)
    schema = first.schema.with_metadata({METADATA_KEY: json.dumps(metadata)})
    repeated = ["split", "label", "predicted"]  # a dictionary of distinct values helps no other column
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, use_dictionary=repeated) as writer:
        for block in itertools.chain([first], blocks):
            writer.write_table(block.cast(schema), row_group_size=BLOCK_ROWS)


def _write_npz(path: Path, blocks: Iterator[pa.Table], rows: int, metadata: dict[str, Any]) -> None:
    """As np.savez does, but in one pass. Text becomes unicode arrays, so that no reader needs pickle."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("feature.npy", "w", force_zip64=True) as file:
            columns = pa.concat_tables(_write_matrix(file, blocks, rows))
        arrays = {"metadata": np.array(json.dumps(metadata))}
        for name, column in zip(columns.column_names, columns.columns, strict=True):
            text = pa.types.is_string(column.type)
            arrays[name] = np.array(column.fill_null("").to_pylist(), str) if text else column.to_numpy()
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_npy(path: Path, blocks: Iterator[pa.Table], rows: int, metadata: dict[str, Any]) -> None:
    sidecar = sidecars(path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        with replacing(sidecar.rows) as csv_file:
            writer: pyarrow.csv.CSVWriter | None = None
            for columns in _write_matrix(file, blocks, rows):
                writer = writer or pyarrow.csv.CSVWriter(csv_file, columns.schema)
                writer.write_table(columns)
            if writer:
                writer.close()
            path.unlink(missing_ok=True)  # so a matrix never stands next to the sidecars of another
        write_json(sidecar.metadata, metadata)


def _write_matrix(file: IO[bytes], blocks: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Write the features [rows, D] in the .npy format; yields the other columns of each block."""
    for number, block in enumerate(blocks):
        features = feature_matrix(block)
        if number == 0:
            header = np.lib.format.header_data_from_array_1_0(features) | {"shape": (rows, features.shape[1])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(features.tobytes())
        yield block.drop_columns("feature")


def feature_matrix(table: pa.Table) -> np.ndarray:
    """The features [N, D] of a `feature_table`."""
    column = table["feature"].combine_chunks()
    matrix: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)
    return matrix


# Reading --------------------------------------------------------------------------------------------------


class Features(Protocol):
    """An opened feature file.

    Attributes:
        path: of the file.
        rows: N.
        dim: D.
        metadata: what ``mocokit embed`` wrote about it, or None of a file from elsewhere.
    """

    path: Path
    rows: int
    dim: int
    metadata: dict[str, Any] | None

    def blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, features [n, D] float32, finite) from the block that begins with row ``start`` on.

        Raises:
            UserError: the file is damaged, or holds numbers that are not finite.
        """

    def named(self, rows: Collection[int]) -> dict[int, Named]:
        """Path and label of some rows.

        Raises:
            UserError: the file is damaged.
        """


def open_features(path: Path) -> Features:
    """Open a feature file; of an .npy any matrix will do.

    Raises:
        UserError: no such file, of another kind, or damaged.
    """
    check_format(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; mocokit embed writes it")
    opened: Features = _ParquetFeatures(path) if path.suffix == ".parquet" else _ArrayFeatures(path)
    if not (opened.rows and opened.dim):
        raise UserError(f"{path}: holds no features (its matrix is {opened.rows} x {opened.dim})")
    return opened


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Inside, whatever a damaged or hostile file raises is a UserError that names the file."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:160]
        raise UserError(f"{path}: not a feature file, or damaged ({reason}); embed again") from None


def _finite(path: Path, first: int, block: np.ndarray) -> tuple[int, np.ndarray]:
    with _reading(path), np.errstate(over="ignore"):
        block = np.array(block, np.float32, order="C")
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        row = first + int(bad.argmax())
        raise UserError(f"{path}: row {row} holds numbers that are infinite or not a number")
    return first, block


class _ArrayFeatures:
    """An .npy, memory-mapped, or an .npz."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: dict[str, np.ndarray] = {}
        self.metadata = None
        with _reading(path):
            if path.suffix == ".npy":
                matrix = np.load(path, mmap_mode="r", allow_pickle=False)
                sidecar = sidecars(path).metadata
                text = sidecar.read_text("utf-8") if sidecar.exists() else None
            else:
                matrix, text = self._load_npz()
        if matrix.ndim != 2 or matrix.dtype.kind not in "buif":
            raise UserError(
                f"{path}: expected a matrix of numbers [rows, features], "
                f"got {matrix.dtype} of shape {list(matrix.shape)}"
            )
        self._matrix = matrix
        self.rows, self.dim = matrix.shape
        with _reading(path):
            self.metadata = None if text is None else _parsed(text)

    def _load_npz(self) -> tuple[np.ndarray, str | None]:
        with zipfile.ZipFile(self.path) as archive:
            # Stored, an array is no larger than the file; compressed, a small file could fill the memory.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UserError(f"{self.path}: its arrays are compressed; write it with numpy.savez")
        with np.load(self.path, allow_pickle=False) as arrays:
            self._columns = {name: arrays[name] for name in ("path", "label") if name in arrays}
            return arrays["feature"], str(arrays["metadata"]) if "metadata" in arrays else None

    def blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(start, self.rows, BLOCK_ROWS):
            yield _finite(self.path, first, self._matrix[first : first + BLOCK_ROWS])

    def named(self, rows: Collection[int]) -> dict[int, Named]:
        if self.path.suffix == ".npy":
            return self._from_sidecar(set(rows))
        with _reading(self.path):
            return {row: Named(**{n: str(c[row]) or None for n, c in self._columns.items()}) for row in rows}

    def _from_sidecar(self, rows: set[int]) -> dict[int, Named]:
        path = sidecars(self.path).rows
        if not path.exists():
            return dict.fromkeys(rows, Named())
        found: dict[int, Named] = {}
        with _reading(path), path.open(encoding="utf-8", newline="") as file:
            count = 0
            for count, values in enumerate(csv.DictReader(file), start=1):
                if count - 1 in rows:
                    found[count - 1] = Named(values.get("path") or None, values.get("label") or None)
            if count != self.rows:
                raise ValueError(f"{count} rows where {self.path.name} has {self.rows}")
        return found


class _ParquetFeatures:
    """A Parquet file, read by row groups."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path):
            self._file = pq.ParquetFile(path)
            schema = self._file.schema_arrow
            self.rows = self._file.metadata.num_rows
            self.dim = self._first_length() if self.rows else 0
            text = (schema.metadata or {}).get(METADATA_KEY)
            self.metadata = None if text is None else _parsed(text)
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._groups = np.flatnonzero(counts).tolist()  # an empty one would begin where the next does
        self._starts = (np.cumsum(counts) - counts)[self._groups].tolist()

    def _first_length(self) -> int:
        """Of the first vector: tables that other tools have rewritten have vectors of any length."""
        first = next(self._file.iter_batches(1, columns=["feature"]))["feature"][0].as_py()
        if not isinstance(first, list):
            raise ValueError("its column feature holds no vectors")
        return len(first)

    def blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        for first, group in zip(self._starts, self._groups, strict=True):
            if first < start:
                continue
            with _reading(self.path):
                column = self._file.read_row_group(group, columns=["feature"])["feature"].combine_chunks()
                lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
                if (lengths != self.dim).any():  # of a missing one it is not a number
                    row = first + int((lengths != self.dim).argmax())
                    raise ValueError(f"the feature of row {row} is not of length {self.dim}")
                block = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), self.dim)
            yield _finite(self.path, first, block)

    def named(self, rows: Collection[int]) -> dict[int, Named]:
        found: dict[int, Named] = {}
        columns = [name for name in ("path", "label") if name in self._file.schema_arrow.names]
        wanted = np.array(sorted(rows), dtype=np.int64)
        places = np.searchsorted(self._starts, wanted, side="right") - 1
        for place in np.unique(places).tolist():
            with _reading(self.path):
                table = self._file.read_row_group(self._groups[place], columns=columns)
                for row in wanted[places == place].tolist():
                    values = {name: table[name][row - self._starts[place]].as_py() for name in columns}
                    found[row] = Named(**{n: None if v is None else str(v) for n, v in values.items()})
        return found


def _parsed(text: str | bytes) -> dict[str, Any]:
    """The metadata of a file that mocokit wrote."""
    metadata = json.loads(text)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"its metadata are not of format {FORMAT}")
    return metadata
