"""Labels of any storage become numbers from 0 and names; what is none says why. Files: `test_shard_readers.py`."""

import numpy as np
import pyarrow as pa
import pytest

from mocokit.data.labels import join_labels, label_column, label_values, number_labels
from mocokit.errors import UserError


def test_numbers_that_are_named_stay_as_they_are() -> None:
    labels, classes, notes = number_labels(pa.array([2, None, -1, 2]), ["a", "b", "c"], "x")
    assert (classes, notes) == (("a", "b", "c"), [])
    np.testing.assert_array_equal(labels, [2, -1, -1, 2])
    with pytest.raises(UserError, match="x: label 3 where 3 classes are named"):
        number_labels(pa.array([0, 3]), ["a", "b", "c"], "x")


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ([7, 7, None], ["all labels are 7: a single class is none"]),
        ([None, -1], ["all labels are null or -1, which stand for none"]),
        ([], []),
    ],
)
def test_fewer_than_two_classes_are_none(values: list[int | None], notes: list[str]) -> None:
    assert number_labels(pa.array(values, pa.int64()), None, "x") == (None, None, notes)


def test_minus_one_and_one_are_classes_only_by_themselves() -> None:
    labels, classes, (note,) = number_labels(pa.array([-1, 1, None]), None, "x")
    assert (labels.tolist(), classes) == ([0, 1, -1], ("-1", "1"))
    assert note.startswith("labels -1 and 1 are two classes")
    assert number_labels(pa.array([-1, 1, 0]), None, "x")[0].tolist() == [-1, 1, 0]
    assert number_labels(pa.array([-1, 1]), ["a", "b"], "x")[0].tolist() == [-1, 1]


def test_parts_of_several_kinds_are_texts() -> None:
    joined = join_labels([pa.array([1, 2]), None, pa.array(["1"], pa.large_string())], [2, 2, 1])
    assert joined is not None
    assert joined.to_pylist() == ["1", "2", None, None, "1"]
    assert join_labels([None, None], [1, 1]) is None


@pytest.mark.parametrize("kind", [pa.uint64(), pa.decimal128(20), pa.float32(), pa.int8()])
def test_whole_numbers_of_any_kind(kind: pa.DataType) -> None:
    values = label_values(pa.array([3, None], pa.int64()).cast(kind))
    assert not isinstance(values, str)
    assert (values.type, values.to_pylist()) == (pa.int64(), [3, None])


@pytest.mark.parametrize(
    "column", [pa.array([2**63], pa.uint64()), pa.array([float("inf")]), pa.array([b"\xff"]), pa.array([{"a": 1}])]
)
def test_what_is_no_class_says_so(column: pa.Array) -> None:
    assert isinstance(label_values(column), str)


def test_the_most_usual_name_comes_first() -> None:
    assert label_column(["id", "Category", "LABEL", "image"]) == ["LABEL", "Category"]
