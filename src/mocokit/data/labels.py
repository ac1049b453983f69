"""Labels as they are stored, whole numbers, texts or truth values, become numbers from 0 and names of classes."""

from collections.abc import Iterable, Sequence
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mocokit.errors import UserError

LABELS = (
    *("label", "labels", "cls", "fine_label", "class", "class_name", "class_label", "class_id", "label_name"),
    *("label_id", "category", "category_name", "category_id", "target", "y"),
)
UNLABELLED = -1  # as the hub marks the images without a label, too

BINARY = {-1, 1}


def label_column(names: Iterable[str]) -> list[str]:
    """Those of the ``names`` of columns that are usual for labels, the most usual first, in any case."""
    rank = {name: number for number, name in enumerate(LABELS)}
    return sorted((name for name in names if name.lower() in rank), key=lambda name: rank[name.lower()])


def label_values(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array | str:
    """The column as int64 or text, null where an image has no label; or why these are no classes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.int64())
    if pa.types.is_boolean(kind):
        return pc.if_else(column, "True", "False")
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
        if not pc.all(pc.or_kleene(pc.is_null(column), pc.equal(pc.floor(column), column)), min_count=0).as_py():
            return f"{kind} with fractions, which are no classes"
    try:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return column.cast(pa.int64())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
            texts = column.cast(pa.large_string())
            return pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
    except pa.ArrowInvalid:
        return f"{kind} with values that are no classes"
    return f"{kind}, where a number or a text for each image is expected"


def join_labels(parts: Sequence[pa.ChunkedArray | pa.Array | None], lengths: Iterable[int]) -> pa.ChunkedArray | None:
    """The labels of several parts one after the other, null in those without; texts, if some of them are."""
    kinds = {part.type for part in parts if part is not None}
    if not kinds:
        return None
    kind = kinds.pop() if len(kinds) == 1 else pa.large_string()
    whole = [pa.nulls(n, kind) if p is None else p.cast(kind) for p, n in zip(parts, lengths, strict=True)]
    return pa.chunked_array([chunk for part in whole for chunk in getattr(part, "chunks", [part])], kind)


def number_labels(
    values: pa.ChunkedArray | pa.Array | None, names: Sequence[str] | None, place: object
) -> tuple[np.ndarray | None, tuple[str, ...] | None, list[str]]:
    """Number the classes among ``values``, which `label_values` gave: labels [N] int64, what each number stands for,
    and a line on what may not be expected.

    Numbers that ``names`` name stay as they are; others are numbered in their order, and texts in theirs. Texts that
    look alike are one class (Unicode's NFC). Without two classes there are no labels: None.

    Raises:
        UserError: a number of ``place`` that ``names`` does not name.
    """
    if values is None:
        return None, None, []
    is_number = pa.types.is_integer(values.type)
    distinct = pc.unique(values).drop_null().to_pylist()
    is_binary = is_number and names is None and set(distinct) == BINARY
    if is_number and not is_binary:
        distinct = [value for value in distinct if value != UNLABELLED]
    if is_number and names is not None:
        if unnamed := [value for value in distinct if not 0 <= value < len(names)]:
            raise UserError(f"{place}: label {max(unnamed, key=abs)} where {len(names)} classes are named")
        name_of = {value: value for value in distinct}
        number_of = {value: value for value in distinct}
        classes = tuple(names)
    else:
        name_of = {value: value if is_number else normalize("NFC", value) for value in distinct}
        number_of = {name: number for number, name in enumerate(sorted(set(name_of.values())))}
        classes = tuple(map(str, number_of))
    if not distinct:
        return None, None, ["all labels are null or -1, which stand for none"] if len(values) else []
    if len(classes) < 2:
        return None, None, [f"all labels are {classes[0]}: a single class is none"]
    position = pc.index_in(values, value_set=pa.array(distinct, values.type)).fill_null(len(distinct))
    numbers = np.array([*(number_of[name_of[value]] for value in distinct), UNLABELLED], dtype=np.int64)
    notes = ["labels -1 and 1 are two classes; without a label an image would have none"] if is_binary else []
    return numbers[position.to_numpy()], classes, notes
