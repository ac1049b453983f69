"""Labels, and maybe splits, of images in a table: a text file with separators, or Parquet."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mocokit.data.image_index import SPLITS, has_image_suffix, reading, split_word, splits_of_words
from mocokit.data.labels import BINARY, UNLABELLED, label_column, label_values, number_labels
from mocokit.data.notes import count, listed
from mocokit.data.shard_readers import PARQUET, TAR, shard_kind
from mocokit.data.tiles import origin_of
from mocokit.errors import UserError

SEPARATORS = ",;\t"
_IMAGE = ("image", "path", "file", "filename", "name", "imagepath", "filepath", "imagename", "imagefile", "imageid")
_SPLIT = ("split",)
_CLASS_NAMES = ("labelname", "classname", "categoryname", "names")
_WHOLE, _NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})"), re.compile(r"-?(0|[1-9]\d*)\.\d+|-?(0|[1-9]\d{0,17})")
_SEVERAL = -2  # in the place of the one image that a name means


@dataclass(frozen=True)
class LabelsFile:
    """The rows of a table, each about one image."""

    place: str
    names: list[str]  # of the images, as they are written
    labels: np.ndarray  # int64 [N], -1 for none
    label_names: tuple[str, ...] | None
    splits: np.ndarray | None  # int64 [N], positions in SPLITS, -1 for that of the image's folder; or there are none
    notes: tuple[str, ...]
    columns: dict[str, pa.Array]  # all of the table

    def match(self, images: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """The row of each image, int64 [len(images)], -1 for none; and lines on rows that are of no image.

        A row is about the image of that path; else about the one whose path ends so, or is an end of the row's; else
        about the only one with that file name, then with that file name but for its ending. Of several rows for an
        image the one that says most of its path counts. A tile that no row is about has that of its image.

        Raises:
            UserError: no row is about an image, or two rows say different things of the same one.
        """
        origins = [origin_of(name) for name in images]
        wholes = list(dict.fromkeys(whole for whole, name in zip(origins, images, strict=True) if whole != name))
        row_of, lines = self._match([*images, *wholes])
        own, place = row_of[: len(images)], {name: len(images) + n for n, name in enumerate(wholes)}
        of_whole = row_of[[place.get(whole, n) for n, whole in enumerate(origins)]]
        return np.where(own >= 0, own, of_whole), lines

    def _match(self, images: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        keys = [_key(name) for name in images]
        places = [_ends(keys), _ends([_stem(key) for key in keys])]
        row_of = np.full(len(images), -1, dtype=np.int64)
        rank_of = np.full(len(images), 9, dtype=np.int64)
        missing, unclear, contradictions = list[str](), list[str](), list[tuple[int, int, str, str]]()
        for row, name in enumerate(self.names):
            image, rank = _find(_key(name), keys, places)
            if image < 0:
                (unclear if image == _SEVERAL else missing).append(name)
            elif rank < rank_of[image]:
                if row_of[image] >= 0:
                    missing.append(self.names[row_of[image]])
                row_of[image], rank_of[image] = row, rank
            elif rank > rank_of[image]:
                missing.append(name)
            elif not self._same(int(row_of[image]), row):
                contradictions.append((image, rank, self.names[row_of[image]], name))
        for image, rank, first, name in contradictions:
            if rank == rank_of[image]:
                raise UserError(
                    f"{self.place}: two rows, {first!r} and {name!r}, say different things of {images[image]}; "
                    "an image has one label: keep one of the rows"
                )
            missing.append(name)  # for a row further down says more of its path
        if images and not (row_of >= 0).any():
            first = origin_of(images[0])
            way_out = "write paths inside the data, or file names"
            if shard_kind(first.rpartition("/")[0]) in (PARQUET, TAR):
                way_out = "images in shards are called SHARD/NUMBER, so labels are better kept in the shards"
            raise UserError(
                f"{self.place}: none of its {len(self.names):,} names is that of an image: the first is "
                f"{self.names[0] if self.names else 'missing'}, the first image is {first}; {way_out}"
            )
        lines = [_line(missing, "of no image")] if missing else []
        taken = [(self.names[row], keys[image]) for image, row in enumerate(row_of.tolist()) if row >= 0]
        if others := [name for name, key in taken if _other_folder(_key(name), key)]:
            lines.append(_line(others, "of images in other folders, found by the ends of their paths alone"))
        return row_of, lines + ([_line(unclear, "of several images, so they say nothing of any")] if unclear else [])

    def _same(self, first: int, second: int) -> bool:
        """Whether two rows say the same."""
        splits = self.splits is None or self.splits[first] == self.splits[second]
        return bool(self.labels[first] == self.labels[second] and splits)


def _line(names: list[str], what: str) -> str:
    are = "row of the labels is" if len(names) == 1 else "rows of the labels are"
    return f"{len(names):,} {are} {what}; the first is {names[0]}"


def read_labels(path: str, columns: str | None = None) -> LabelsFile:
    """Read a table of labels.

    Args:
        path: a text file with a line of names of columns and commas, semicolons or tabs between fields, or Parquet.
        columns: names of the columns of images, labels and, if images have a split there, splits, with commas between.

    Raises:
        UserError: the file can't be read, lacks a column, or its labels or splits are none.
    """
    with reading(path, " as a table of labels"):
        table = _table(path)
        image, label, split = _columns(path, table, columns)
        names = _names(table[image])
    values, used, notes = _labels(path, table, label)
    labels, label_names, more = number_labels(values, None, path)
    splits = None if split is None else _splits(path, split, table[split])
    taken = ", ".join(filter(None, [image, used, split]))
    takes = f"labels from {path}: {count(len(names), 'row', 'rows')}, columns {taken}"
    labels = np.full(len(names), -1, dtype=np.int64) if labels is None else labels
    return LabelsFile(path, names, labels, label_names, splits, (takes, *notes, *more), table)


def read_labelled(path: str) -> LabelsFile:
    """Read which images a table says are labelled, whatever the labels: rows with one, or all without such a column.

    Raises:
        UserError: the file can't be read, lacks a column of images, or its labels are no classes.
    """
    with reading(path, " as a table of images"):
        table = _table(path)
        image, label = _usual(table, _IMAGE), next(iter(label_column(table)), None)
        if image is None:
            there = listed([name[:40] for name in table])
            raise UserError(f"{path}: its first line names no column of images, such as image or path, but {there}")
        names = _names(table[image])
        if label is not None:
            values = _values(path, table, label).to_pylist()
            none = (None,) if set(values) - {None} == BINARY else (None, UNLABELLED)
            names = [name for name, value in zip(names, values, strict=True) if value not in none]
    return LabelsFile(path, names, np.zeros(len(names), dtype=np.int64), None, None, (), {})


def _table(path: str) -> dict[str, pa.Array]:
    is_parquet = path.lower().endswith((".parquet", ".pq"))
    return _parquet(path) if is_parquet else _text(Path(path).read_bytes())


def _names(column: pa.Array) -> list[str]:
    names: list[str] = column.cast(pa.large_string()).fill_null("").to_pylist()
    return names


def _text(content: bytes) -> dict[str, pa.Array]:
    """The columns of a text with separators, all of them texts."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; save it as CSV UTF-8") from error
    if "\0" in text:
        raise ValueError("it holds null characters")
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    rows: list[list[str]] = []
    for fields in reader:
        if not any(fields):
            continue
        if rows and len(fields) != len(rows[0]):
            raise ValueError(f"line {reader.line_num} has {len(fields)} fields, the first line {len(rows[0])}")
        rows.append(fields)
    if not rows:
        raise ValueError("it is empty")
    header, *rest = rows
    texts = zip(*rest, strict=True) if rest else [()] * len(header)
    columns = [pa.array([field.strip() for field in column], pa.large_string()) for column in texts]
    return _named([name.strip() for name in header], columns)


def _parquet(path: str) -> dict[str, pa.Array]:
    table = pq.read_table(path)
    return _named(table.column_names, [column.combine_chunks() for column in table.columns])


def _named(header: list[str], columns: list[pa.Array]) -> dict[str, pa.Array]:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"several columns are named {twice[0]!r}")
    return dict(zip(header, columns, strict=True))


def _columns(path: str, table: dict[str, pa.Array], said: str | None) -> tuple[str, str, str | None]:
    """The names of the columns of images, labels and, maybe, splits."""
    there = listed([name[:40] for name in table])
    if said is not None:
        parts = [part.strip() for part in said.split(",")]
        if len(parts) not in (2, 3) or not all(parts):
            raise UserError(f"--labels-columns {said}: write two or three names of columns, such as image,label,split")
        if unknown := [part for part in parts if part not in table]:
            raise UserError(f"--labels-columns {said}: {path} has no column {unknown[0]!r}, but {there}")
        return parts[0], parts[1], parts[2] if len(parts) == 3 else None
    image, label = _usual(table, _IMAGE), next(iter(label_column(table)), None)
    if image is None or label is None:
        what = "images, such as image, path or filename" if image is None else "labels, such as label or class"
        way_out = "say which with --labels-columns image,label"
        raise UserError(f"{path}: its first line names no column of {what}, but {there}; {way_out}")
    return image, label, _usual(table, _SPLIT)


def _usual(table: Iterable[str], names: Sequence[str]) -> str | None:
    """The column with the first of some ``names``, in any case, with or without what is between words."""
    plain = {re.sub(r"[\W_]+", "", name.lower()): name for name in table}
    return next((plain[name] for name in names if name in plain), None)


def _labels(path: str, table: dict[str, pa.Array], label: str) -> tuple[pa.Array, str, list[str]]:
    """Values as `label_values` gives them, the column they are from, and lines; numbers are told by the names that
    another column has for them."""
    values = _values(path, table, label)
    named = _usual((name for name in table if name != label), _CLASS_NAMES)
    if named is None or not pa.types.is_integer(values.type):
        return values, label, []
    names = _values(path, table, named)
    pairs = sorted(set(zip(values.to_pylist(), names.to_pylist(), strict=True)), key=str)
    if len({number for number, _ in pairs}) == len({name for _, name in pairs}) == len(pairs):
        return names, named, []
    return values, label, [f"column {named} is not used: its names are not one for each {label}"]


def _values(path: str, table: dict[str, pa.Array], name: str) -> pa.Array:
    column = table[name]
    if pa.types.is_large_string(column.type) or pa.types.is_string(column.type):
        is_nan = pc.equal(pc.utf8_lower(column), "nan")  # as pandas may write what is missing
        column = pc.if_else(is_nan, pa.scalar("", column.type), column)
        texts = [text for text in pc.unique(column).to_pylist() if text]
        if texts and all(map(_NUMBER.fullmatch, texts)):
            kind = pa.int64() if all(map(_WHOLE.fullmatch, texts)) else pa.float64()
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column).cast(kind)
    values = label_values(column)
    if isinstance(values, str):
        raise UserError(f"{path}: column {name} is {values}; say another one with --labels-columns")
    return values


def _splits(path: str, name: str, column: pa.Array) -> np.ndarray:
    """Positions in SPLITS by the usual names, -1 where nothing is written."""
    texts = [str(text).strip() if text is not None else "" for text in column.to_pylist()]
    words = {text: split_word(text) for text in set(texts) if text}
    if unknown := sorted(text for text, word in words.items() if word is None):
        raise UserError(
            f"{path}: column {name} has {unknown[0][:40]!r}, which is none of train, val and test; "
            "leave it out with --labels-columns image,label"
        )
    meant = splits_of_words(words.values())
    number = {text: SPLITS.index(meant[word]) for text, word in words.items() if word is not None}
    return np.array([number.get(text, -1) for text in texts], dtype=np.int64)


def _key(name: str) -> str:
    """A name so that it can be compared."""
    return normalize("NFC", name).replace("\\", "/").strip().removeprefix("./")


def _other_folder(key: str, image: str) -> bool:
    """Whether the folders of a row and of its image differ, as far up as both have any."""
    folders = [reversed(name.split("/")[:-1]) for name in (key, image)]
    return any(first != second for first, second in zip(*folders, strict=False))


def _stem(key: str) -> str:
    return key.rpartition(".")[0] if has_image_suffix(key) else key


def _ends(keys: Sequence[str]) -> dict[str, int]:
    """Which of the paths ends so, whole folders at a time; `_SEVERAL` where several do and none is that path."""
    ends: dict[str, int] = {}
    for index, key in enumerate(keys):
        start = key.find("/") + 1
        while start:
            ends[key[start:]] = _SEVERAL if key[start:] in ends else index
            start = key.find("/", start) + 1
    seen: set[str] = set()
    for index, key in enumerate(keys):
        ends[key] = _SEVERAL if key in seen else index
        seen.add(key)
    return ends


def _find(key: str, keys: Sequence[str], places: Sequence[dict[str, int]]) -> tuple[int, int]:
    """The image that a row is about, -1 for none, `_SEVERAL`; and how little of its path that took, from 0."""
    for step, (name, ends) in enumerate(zip((key, _stem(key)), places, strict=True)):
        start = 0
        while True:
            image = ends.get(name[start:])
            if image is not None:
                whole = image >= 0 and name[start:] in (keys[image], _stem(keys[image]))
                return image, 3 * step + (0 if whole and not start else 1 if whole or not start else 2)
            start = name.find("/", start) + 1
            if not start:
                break
    return -1, 9
