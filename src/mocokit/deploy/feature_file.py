"""The feature file: one row an image, as Parquet, .npz or .npy; written by ``mocokit embed``, read by search.

Columns: ``path`` inside the data, ``split``, ``label`` (class name), ``feature`` [D], and of a fine-tuned encoder
``predicted`` and ``probability``. Only a block of the features is in memory at a time (an .npz is read whole).
"""

import itertools
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from mocokit.errors import UserError, refusing_damage
from mocokit.files import printable, replacing, utf8_path, write_json

FORMAT = "mocokit-features-1"
SUFFIXES = (".parquet", ".npz", ".npy")
BLOCK_ROWS = 16_384  # written and read at once
METADATA_KEY = b"mocokit"  # in the schema of a Parquet file


class Named(NamedTuple):
    """Path and label of a row, None where the feature file does not give them."""

    path: str | None = None
    label: str | None = None


# Writing --------------------------------------------------------------------------------------------------


def feature_files(path: Path) -> list[Path]:
    """What the feature file ``path`` consists of: of an .npy also the other columns and the metadata beside it."""
    return [path, *(path.with_name(path.name + suffix) for suffix in (".csv", ".json") if path.suffix == ".npy")]


def check_format(path: Path) -> None:
    """See that ``path`` has the suffix of a feature file, or raise a UserError."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: the name of a feature file ends in {', '.join(SUFFIXES)}")


def feature_table(features: np.ndarray, columns: dict[str, list[Any]]) -> pa.Table:
    """Rows of a feature file: ``features`` [N, D] float32 or float16, after the other columns, each of N values.

    Text is made `printable`: names of files and of classes need not be UTF-8.
    """
    vector = pa.list_(pa.from_numpy_dtype(features.dtype), features.shape[1])
    types = {"probability": pa.float32()}
    columns = {n: [printable(v) if isinstance(v, str) else v for v in values] for n, values in columns.items()}
    arrays = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    arrays["feature"] = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), type=vector)
    return pa.table(arrays)


def write_features(path: Path, tables: Iterable[pa.Table], rows: int, metadata: dict[str, Any]) -> None:
    """Write a feature file whole; the same rows give the same bytes, however they are cut into tables.

    Args:
        path: replaced; the suffix decides about the format. An .npy holds the features alone; ``PATH.csv``
            has the other columns and ``PATH.json`` the metadata.
        tables: all ``rows`` in order, from `feature_table`; at least one table.
        rows: how many they are together.
        metadata: plain values.
    """
    write = {".parquet": _write_parquet, ".npz": _write_npz, ".npy": _write_npy}[path.suffix]
    first = next(iterator := iter(tables))
    blocks = _blocks(itertools.chain([first], iterator))
    write(path, first.schema, blocks, rows, {"format": FORMAT} | metadata)


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


def _write_parquet(
    path: Path, schema: pa.Schema, blocks: Iterator[pa.Table], rows: int, metadata: dict[str, Any]
) -> None:
    schema = schema.with_metadata({METADATA_KEY: json.dumps(metadata)})
    repeated = ["split", "label", "predicted"]  # a dictionary of distinct values helps no other column
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,  # opened here: pyarrow takes UTF-8 names alone
        pq.ParquetWriter(file, schema, use_dictionary=repeated) as writer,
    ):
        for block in blocks:
            writer.write_table(block.cast(schema), row_group_size=BLOCK_ROWS)


def _write_npz(path: Path, schema: pa.Schema, blocks: Iterator[pa.Table], rows: int, metadata: dict[str, Any]) -> None:
    """As np.savez does, but in one pass. Text becomes unicode arrays, so that no reader needs pickle."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("feature.npy", "w", force_zip64=True) as file:
            columns = pa.concat_tables(_write_matrix(file, schema, blocks, rows))
        arrays = {"metadata": np.array(json.dumps(metadata))}
        for name, column in zip(columns.column_names, columns.columns, strict=True):
            text = pa.types.is_string(column.type)
            arrays[name] = np.array(column.fill_null("").to_pylist(), str) if text else column.to_numpy()
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_npy(path: Path, schema: pa.Schema, blocks: Iterator[pa.Table], rows: int, metadata: dict[str, Any]) -> None:
    _, csv_path, json_path = feature_files(path)
    columns_schema = schema.remove(schema.get_field_index("feature"))
    with replacing(path) as temporary, temporary.open("wb") as file:
        with replacing(csv_path) as csv_temporary, csv_temporary.open("wb") as csv_file:
            with pyarrow.csv.CSVWriter(csv_file, columns_schema) as writer:
                for columns in _write_matrix(file, schema, blocks, rows):
                    writer.write_table(columns)
            path.unlink(missing_ok=True)  # so a matrix never stands next to the sidecars of another
        write_json(json_path, metadata)


def _write_matrix(file: IO[bytes], schema: pa.Schema, blocks: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Write the features [rows, D] in the .npy format; yields the other columns of each block."""
    empty = feature_matrix(schema.empty_table())
    header = np.lib.format.header_data_from_array_1_0(empty) | {"shape": (rows, empty.shape[1])}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(feature_matrix(block).tobytes())
        yield block.drop_columns("feature")


def feature_matrix(table: pa.Table) -> np.ndarray:
    """The features [N, D] of a `feature_table`."""
    column = table["feature"].combine_chunks()
    matrix: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)
    return matrix


# Reading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """An opened feature file of ``rows`` N and dimension ``dim`` D.

    ``metadata`` are what ``mocokit embed`` wrote about it, or None of a file from elsewhere.
    """

    path: Path
    rows: int
    dim: int
    metadata: dict[str, Any] | None
    starts: Sequence[int]  # first rows of the blocks
    block: Callable[[int], np.ndarray]  # that begins with a row
    names: ds.Dataset | None  # path and label of each row

    def blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, features [n, D] float32) from the block that begins with row ``start`` on.

        Raises:
            UserError: the file is damaged, or holds numbers that are not finite.
        """
        for first in self.starts:
            if first < start:
                continue
            with _reading(self.path), np.errstate(over="ignore"):
                block = np.array(self.block(first), np.float32, order="C")
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                row = first + int(bad.argmax())
                raise UserError(f"{self.path}: row {row} holds numbers that are infinite or not a number")
            yield first, block

    def named(self, rows: Collection[int]) -> dict[int, Named]:
        """Path and label of some rows; a damaged file raises a UserError."""
        if self.names is None:
            return dict.fromkeys(rows, Named())
        with _reading(self.path):
            if (count := self.names.count_rows()) != self.rows:
                table = feature_files(self.path)[:2][-1].name  # of an .npy its .csv
                raise ValueError(f"{table}: {count} rows where {self.path.name} has {self.rows}")
            ordered = sorted(rows)
            found = self.names.take(ordered).to_pylist()
            return {row: Named(**{n: v or None for n, v in f.items()}) for row, f in zip(ordered, found, strict=True)}


def open_features(path: Path) -> Features:
    """Open a feature file; of an .npy any matrix will do. Anything else raises a UserError."""
    check_format(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; mocokit embed writes it")
    with _reading(path):
        path.open("rb").close()  # says why it can't be read, which pyarrow does in many words
        opened = {".parquet": _open_parquet, ".npz": _open_npz, ".npy": _open_npy}[path.suffix](path)
    if not (opened.rows and opened.dim):
        raise UserError(f"{path}: holds no features (its matrix is {opened.rows} x {opened.dim})")
    return opened


def _reading(path: Path) -> AbstractContextManager[None]:
    return refusing_damage(f"{path}: not a feature file, or damaged", "embed again")


def _open_npy(path: Path) -> Features:
    """Its matrix memory-mapped; the sidecars may be missing."""
    matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(matrix, np.ndarray):
        matrix.close()
        raise UserError(f"{path}: holds the arrays of an .npz; give it that suffix")
    _, csv_path, json_path = feature_files(path)
    text = json_path.read_text("utf-8") if json_path.exists() else None
    return _array_features(path, matrix, text, _names(csv_path, _CSV) if csv_path.exists() else None)


def _open_npz(path: Path) -> Features:
    with zipfile.ZipFile(path) as archive:
        # Stored, an array is no larger than the file; compressed, a small file could fill the memory.
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise UserError(f"{path}: its arrays are compressed; write it with numpy.savez")
    with np.load(path, allow_pickle=False) as arrays:
        names = {name: pa.array(arrays[name].astype(str)) for name in Named._fields if name in arrays}
        text = str(arrays["metadata"]) if "metadata" in arrays else None
        return _array_features(path, arrays["feature"], text, ds.dataset(pa.table(names)) if names else None)


def _array_features(path: Path, matrix: np.ndarray, text: str | None, names: ds.Dataset | None) -> Features:
    if matrix.ndim != 2 or matrix.dtype.kind not in "buif":
        got = f"{matrix.dtype} of shape {list(matrix.shape)}"
        raise UserError(f"{path}: expected a matrix of numbers [rows, features], got {got}")
    rows, dim = matrix.shape
    starts = range(0, rows, BLOCK_ROWS)
    return Features(path, rows, dim, _parsed(text), starts, lambda row: matrix[row : row + BLOCK_ROWS], names)


def _open_parquet(path: Path) -> Features:
    """Its row groups are the blocks."""
    file = pq.ParquetFile(utf8_path(path))
    rows = file.metadata.num_rows
    # Of the first vector: tables that other tools have rewritten have vectors of any length.
    dim = len(next(file.iter_batches(1, columns=["feature"]))["feature"][0]) if rows else 0
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = (np.cumsum(counts) - counts).tolist()
    groups = {starts[i]: i for i in np.flatnonzero(counts)}  # an empty one would begin where the next does

    def block(first: int) -> np.ndarray:
        column = file.read_row_group(groups[first], columns=["feature"])["feature"].combine_chunks()
        wrong = pc.list_value_length(column).to_numpy(zero_copy_only=False) != dim  # of a missing one it is nan
        if wrong.any():
            raise ValueError(f"the feature of row {first + int(wrong.argmax())} is not of length {dim}")
        matrix: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), dim)
        return matrix

    metadata = _parsed((file.schema_arrow.metadata or {}).get(METADATA_KEY))
    return Features(path, rows, dim, metadata, list(groups), block, _names(path, "parquet"))


_CSV = ds.CsvFileFormat(
    pyarrow.csv.ParseOptions(newlines_in_values=True),
    convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True, null_values=[""]),
)


def _names(path: Path, format: str | ds.FileFormat) -> ds.Dataset:
    """Paths and labels in a table, None where it has no such columns; read as they are needed."""
    schema = pa.schema([(name, pa.string()) for name in Named._fields])
    return ds.dataset(utf8_path(path), schema, format, LocalFileSystem())  # a name with a colon is no address


def _parsed(text: str | bytes | None) -> dict[str, Any] | None:
    """The metadata of a file that mocokit wrote."""
    metadata = None if text is None else json.loads(text)
    if text is not None and (not isinstance(metadata, dict) or metadata.get("format") != FORMAT):
        raise ValueError(f"its metadata are not of format {FORMAT}")
    return metadata
