"""The feature file: what is written comes back, plain libraries read it, and no foreign file does harm."""

import csv
import itertools
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mocokit.deploy.feature_file as module
from mocokit.deploy.feature_file import (
    Named,
    check_format,
    feature_matrix,
    feature_table,
    open_features,
    write_features,
)
from mocokit.errors import UserError
from mocokit.files import printable

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])


def made(counts=(5, 3), dim=4, dtype="float32", classified=False, labelled=True) -> list[pa.Table]:
    """Tables of that many rows."""
    rng, tables, number = np.random.default_rng(0), [], 0
    for count in counts:
        columns = {
            "path": [f'train/ä{i}, "q".png' for i in range(number, number + count)],
            "split": ["train"] * count,
            "label": ["cat" if labelled and i % 2 else None for i in range(count)],
        }
        number += count
        feature = rng.normal(size=(count, dim)).astype(dtype)
        if classified:
            columns |= {"predicted": ["dog"] * count, "probability": [0.0, *rng.random(count - 1).tolist()]}
        tables.append(feature_table(feature, columns))
    return tables


def write(path, tables, **metadata):
    feature = np.concatenate([feature_matrix(table) for table in tables])
    write_features(path, iter(tables), len(feature), metadata)
    return feature


def column(tables, name):
    return [value for table in tables for value in table[name].to_pylist()]


def content(features) -> np.ndarray:
    blocks = list(features.blocks())
    assert [first for first, _ in blocks] == np.cumsum([0, *(len(b) for _, b in blocks)])[:-1].tolist()
    return np.concatenate([block for _, block in blocks])


@SUFFIXES
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("classified", [False, True])
def test_round_trip(tmp_path, suffix, dtype, classified, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    chunks = made((5, 3, 1), dtype=dtype, classified=classified)
    feature = write(tmp_path / f"f{suffix}", chunks, run="somewhere")
    opened = open_features(tmp_path / f"f{suffix}")
    assert (opened.rows, opened.dim) == (9, 4)
    assert opened.metadata == {"format": "mocokit-features-1", "run": "somewhere"}
    assert np.array_equal(content(opened), feature.astype(np.float32))
    paths, labels = column(chunks, "path"), column(chunks, "label")
    expected = {row: Named(paths[row], labels[row]) for row in (7, 0, 4)}
    assert opened.named({7, 0, 4}) == expected
    starts = [first for first, _ in opened.blocks()]
    assert [first for first, _ in opened.blocks(starts[1])] == starts[1:]


def test_pandas_reads_parquet(tmp_path):
    import pandas as pd

    for dtype in ("float32", "float16"):
        feature = write(tmp_path / "f.parquet", made(classified=True, dtype=dtype))
        table = pd.read_parquet(tmp_path / "f.parquet")
        assert list(table) == ["path", "split", "label", "predicted", "probability", "feature"]
        assert np.array_equal(np.stack(table["feature"]), feature)
        assert np.stack(table["feature"]).dtype == dtype
        assert table["label"].isna().tolist() == [True, False, True, False, True, True, False, True]


def test_a_table_that_pandas_has_filtered(tmp_path):
    import pandas as pd

    feature = write(tmp_path / "f.parquet", made())
    table = pd.read_parquet(tmp_path / "f.parquet")
    table[table["label"] == "cat"].to_parquet(tmp_path / "cats.parquet")
    opened = open_features(tmp_path / "cats.parquet")
    assert np.array_equal(content(opened), feature[[1, 3, 6]])
    assert opened.named([2]) == {2: Named(table["path"][6], "cat")}
    assert opened.metadata is None


def test_empty_row_groups(tmp_path):
    schema = pa.schema([("feature", pa.list_(pa.float32(), 2)), ("path", pa.string())])
    with pq.ParquetWriter(tmp_path / "f.parquet", schema) as writer:
        for i in (0, 2, 0, 1, 0):
            writer.write_table(pa.table({"feature": [[i, 1]] * i, "path": [str(i)] * i}, schema))
    opened = open_features(tmp_path / "f.parquet")
    assert content(opened).tolist() == [[2, 1], [2, 1], [1, 1]]
    assert [first for first, _ in opened.blocks(2)] == [2]
    assert opened.named([1, 2]) == {1: Named("2"), 2: Named("1")}


def test_parquet_has_equal_row_groups_and_vectors_of_fixed_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 5)
    write(tmp_path / "f.parquet", made((4, 8)), run="r")
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] == [5, 5, 2]
    assert file.schema_arrow.field("feature").type == pa.list_(pa.float32(), 4)
    assert json.loads(file.schema_arrow.metadata[b"mocokit"])["run"] == "r"


@SUFFIXES
@pytest.mark.parametrize("counts", [(9,), (1, 8), (3, 3, 3), (0, 9, 0)])
def test_bytes_do_not_depend_on_how_rows_come(tmp_path, suffix, counts, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    whole = pa.concat_tables(made((5, 4), classified=True))
    starts = np.cumsum([0, *counts])
    paths = [tmp_path / name / f"f{suffix}" for name in ("one", "other")]
    write(paths[0], [whole])
    write(paths[1], [whole[start:stop] for start, stop in itertools.pairwise(starts)])
    for file in paths[0].parent.iterdir():
        assert file.read_bytes() == (paths[1].parent / file.name).read_bytes()


def test_numpy_reads_npz_without_pickle(tmp_path):
    chunks = made(classified=True)
    feature = write(tmp_path / "f.npz", chunks)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert set(file) == {"path", "split", "label", "predicted", "probability", "feature", "metadata"}
        assert np.array_equal(file["feature"], feature)
        assert file["path"].tolist() == column(chunks, "path")
        assert file["label"].tolist() == ["", "cat", "", "cat", "", "", "cat", ""]
        assert file["probability"].dtype == np.float32
        assert file["probability"].tolist() == pytest.approx(column(chunks, "probability"))
        assert json.loads(str(file["metadata"]))["format"] == "mocokit-features-1"


def test_npy_is_the_matrix_alone(tmp_path):
    feature = write(tmp_path / "f.npy", made(labelled=False))
    assert np.array_equal(np.load(tmp_path / "f.npy", allow_pickle=False), feature)
    with (tmp_path / "f.npy.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[7]["path"], rows[7]["split"], rows[7]["label"]) == ('train/ä7, "q".png', "train", "")
    assert json.loads((tmp_path / "f.npy.json").read_text())["format"] == "mocokit-features-1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.npy", "f.npy.csv", "f.npy.json"]


@SUFFIXES
@settings(max_examples=15)
@given(text=st.lists(st.text(st.characters(blacklist_characters="\0\r"), min_size=1), min_size=1, max_size=4))
def test_any_name_that_a_file_can_have(suffix, text, tmp_path_factory):
    raw = [*text, "not utf-8: \udcff"]
    names = [printable(name) for name in raw]
    assert names[-1] == "not utf-8: \\udcff"
    columns = {"path": raw, "split": ["train"] * len(names), "label": [None] * (len(names) - 1) + ["class \udcff"]}
    chunk = feature_table(np.ones((len(names), 2), np.float32), columns)
    path = tmp_path_factory.mktemp("names") / f"f{suffix}"
    write(path, [chunk])
    named = {i: Named(n) for i, n in enumerate(names)} | {len(names) - 1: Named(names[-1], "class \\udcff")}
    assert open_features(path).named(range(len(names))) == named


def test_a_relative_name_with_a_colon_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("s3:f.npy"), made())
    assert open_features(Path("s3:f.npy")).named([1]) == {1: Named('train/ä1, "q".png', "cat")}


@SUFFIXES
def test_a_failure_leaves_nothing_half(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    write(path, made(), run="old")

    def failing():
        yield made()[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_features(path, failing(), 8, {})
    assert open_features(path).metadata["run"] == "old"
    assert not list(tmp_path.glob(".*"))


# Foreign and damaged files ----------------------------------------------------------------------------------


def read_all(path):
    opened = open_features(path)
    return list(opened.blocks()), opened.named([0])


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        read_all(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bare_matrix(tmp_path):
    matrix = np.arange(6, dtype=">f8").reshape(3, 2)
    np.save(tmp_path / "f.npy", np.asfortranarray(matrix))
    opened = open_features(tmp_path / "f.npy")
    assert opened.metadata is None
    assert np.array_equal(content(opened), matrix)
    assert opened.named([2]) == {2: Named()}


def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('executed')",)

    np.save(tmp_path / "f.npy", np.array([[Bomb()]], object), allow_pickle=True)
    refused(tmp_path / "f.npy", "not a feature file")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "raw.npy", "not a feature file")
    np.savez(tmp_path / "f.npz", feature=np.array([[Bomb()]], object))
    refused(tmp_path / "f.npz", "not a feature file")


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (np.array([[1, 2], [np.nan, 1]]), "row 1 holds numbers that are infinite or not a number"),
        (np.array([[1e39, 2]]), "row 0 holds numbers"),
        (np.ones(3), r"expected a matrix of numbers .* got float64 of shape \[3\]"),
        (np.ones((2, 2, 2)), "expected a matrix"),
        (np.array([["a"]]), "expected a matrix"),
        (np.ones((0, 4)), "holds no features"),
        (np.ones((4, 0)), "holds no features"),
    ],
)
def test_matrices_that_are_no_features(tmp_path, matrix, match):
    np.save(tmp_path / "f.npy", matrix)
    refused(tmp_path / "f.npy", match)


@SUFFIXES
@pytest.mark.parametrize("keep", [0, 10, 100, 0.5, 0.99])
def test_truncated(tmp_path, suffix, keep):
    path = tmp_path / f"f{suffix}"
    write(path, made((50, 30)))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(path, "not a feature file, or damaged")


def test_a_small_file_that_fills_the_memory_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "f.npz", feature=np.zeros((1000, 1000)))
    refused(tmp_path / "f.npz", "compressed")
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000), }"
    (tmp_path / "f.npy").write_bytes(header.ljust(127) + b"\n")
    refused(tmp_path / "f.npy", "not a feature file")
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as file:
        file.writestr("feature.npy", header.ljust(127) + b"\n")
    refused(tmp_path / "g.npz", "not a feature file")


def test_other_tables(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "not a feature file")
    pq.write_table(pa.table({"feature": [1.0]}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "not a feature file")
    gaps = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"feature": gaps}), tmp_path / "c.parquet")
    refused(tmp_path / "c.parquet", "row 1 is not of length 2")
    pq.write_table(pa.table({"feature": [[1.0, 2.0], [1.0, 2.0, 3.0], [1.0]]}), tmp_path / "e.parquet")
    refused(tmp_path / "e.parquet", "row 1 is not of length 2")
    pq.write_table(pa.table({"feature": [["a"], ["b"]]}), tmp_path / "f.parquet")
    refused(tmp_path / "f.parquet", "not a feature file")
    np.savez(tmp_path / "d.npz", other=np.ones((2, 2)))
    refused(tmp_path / "d.npz", "not a feature file")


def test_an_npz_under_another_name(tmp_path):
    write(tmp_path / "f.npz", made())
    (tmp_path / "f.npz").rename(tmp_path / "f.npy")
    refused(tmp_path / "f.npy", r"f\.npy: holds the arrays of an \.npz; give it that suffix")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "mocokit-features-0"}', "[" * 100_000])
def test_damaged_metadata(tmp_path, text):
    write(tmp_path / "f.npy", made())
    (tmp_path / "f.npy.json").write_text(text)
    refused(tmp_path / "f.npy", "not a feature file")


def test_a_sidecar_of_another_matrix(tmp_path):
    write(tmp_path / "f.npy", made((5, 3)))
    np.save(tmp_path / "f.npy", np.ones((7, 4)))
    with pytest.raises(UserError, match=r"f\.npy\.csv: .*8 rows where f\.npy has 7"):
        open_features(tmp_path / "f.npy").named([0])


def test_missing_and_unknown(tmp_path):
    refused(tmp_path / "none.npy", "no such file")
    for name in ("f.csv", "f", "f.NPY.gz"):
        with pytest.raises(UserError, match=r"ends in \.parquet, \.npz, \.npy"):
            check_format(tmp_path / name)
