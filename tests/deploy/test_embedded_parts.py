"""What embed has done so far survives on disk: nothing twice, nothing missing, nothing of another command."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import mocokit.deploy.embedded_parts as module
from mocokit.data.image_index import Skipped
from mocokit.deploy.embedded_parts import Parts
from mocokit.deploy.feature_file import feature_matrix, feature_table
from mocokit.errors import UserError


@pytest.fixture(autouse=True)
def _each_result_a_part(monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1)


def results(start: int, stop: int) -> tuple[int, pa.Table, list[Skipped]]:
    """Of a stretch: each third image is skipped."""
    numbers = [i for i in range(start, stop) if i % 3]
    rows = feature_table(np.array(numbers, np.float32)[:, None], {"path": [str(i) for i in numbers]})
    return stop - start, rows, [Skipped(str(i), "third") for i in range(start, stop) if not i % 3]


def begin(folder: Path, overwrite: bool = False, **identity) -> Parts:
    return Parts(folder / "f.npy", identity, overwrite)


def numbers(parts: Parts) -> list[int]:
    return [int(x) for table in parts.tables() for x in feature_matrix(table)[:, 0]]


def assert_holds(parts: Parts, stop: int) -> None:
    assert numbers(parts) == [i for i in range(stop) if i % 3]
    assert parts.skipped() == [Skipped(str(i), "third") for i in range(0, stop, 3)]


def test_parts_are_taken_up_where_they_end(tmp_path):
    parts = begin(tmp_path, a=1)
    assert (parts.done, parts.skipped(), list(parts.tables())) == (0, [], [])
    for stop in (4, 5, 6, 7, 9):  # the last image of 6 is alone and skipped
        parts.add(*results(parts.done, stop))
    again = begin(tmp_path, a=1)
    assert again.done == 9
    again.add(*results(9, 10))
    assert_holds(again, 10)
    assert [len(table) for table in again.tables()] == [2, 1, 1, 0, 2, 0]
    again.remove()
    assert list(again.directory.iterdir()) == []


def test_parts_of_before_an_option_are_those_without_it(tmp_path):
    begin(tmp_path, a=1).add(*results(0, 4))
    assert begin(tmp_path, a=1, b=None).done == 4
    with pytest.raises(UserError, match="left its parts"):
        begin(tmp_path, a=1, b="x")


def test_parts_behind_a_gap_are_not_counted(tmp_path):
    parts = begin(tmp_path)
    for stop in (4, 5, 9):
        parts.add(*results(parts.done, stop))
    (parts.directory / "4-5.parquet").unlink()
    again = begin(tmp_path)
    assert again.done == 4
    assert_holds(again, 4)


def test_parts_that_do_not_reach_the_last_image_are_not_taken_for_all(tmp_path):
    parts = begin(tmp_path)
    for stop in (4, 5, 9):
        parts.add(*results(parts.done, stop))
    parts.check_complete(9)
    for images in (8, 10):
        with pytest.raises(UserError, match=r"f\.npy\.parts is damaged: a part is gone; run the command again"):
            parts.check_complete(images)
    (parts.directory / "4-5.parquet").unlink()
    with pytest.raises(UserError, match="is damaged"):
        parts.check_complete(9)


def test_parts_of_something_else_are_kept_unless_overwritten(tmp_path):
    begin(tmp_path, a=1).add(*results(0, 4))
    with pytest.raises(UserError, match="--overwrite"):
        begin(tmp_path, a=2)
    assert begin(tmp_path, overwrite=True, a=1).done == 4
    assert begin(tmp_path, overwrite=True, a=2).done == 0
    assert begin(tmp_path, a=2).done == 0


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_damaged_part_is_named(tmp_path, kept):
    parts = begin(tmp_path)
    parts.add(*results(0, 400))
    path = parts.directory / "0-400.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"0-400\.parquet is damaged"):
        begin(tmp_path)


def test_a_part_damaged_inside_is_named(tmp_path):
    parts = begin(tmp_path)
    parts.add(*results(0, 400))
    path = parts.directory / "0-400.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"0-400\.parquet is damaged"):
        list(begin(tmp_path).tables())


def test_short_results_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 6)
    parts = begin(tmp_path)
    for start in range(0, 10, 2):
        parts.add(*results(start, start + 2))
    assert (parts.done, parts.position) == (6, 10)
    parts.flush()
    again = begin(tmp_path)
    assert [len(table) for table in again.tables()] == [4, 2]
    assert_holds(again, 10)


def test_held_results_are_written_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1000)
    monkeypatch.setattr(module, "PART_SECONDS", 0.0)
    parts = begin(tmp_path)
    parts.add(*results(0, 2))
    assert parts.done == 2


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_flush_can_be_repeated(tmp_path, after, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1000)
    parts = begin(tmp_path)
    parts.add(*results(0, 2))
    parts.add(*results(2, 5))

    class Interrupted:
        """Interrupts as the part is begun, or when it has its name."""

        def __init__(self, path: Path) -> None:
            self.inner = replacing(path)

        def __enter__(self) -> Path:
            if not after:
                raise KeyboardInterrupt
            return self.inner.__enter__()

        def __exit__(self, *error) -> None:
            self.inner.__exit__(*error)
            raise KeyboardInterrupt

    replacing = module.replacing
    with monkeypatch.context() as patch:
        patch.setattr(module, "replacing", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            parts.flush()
    parts.flush()
    assert_holds(begin(tmp_path), 5)


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    parts = begin(tmp_path)
    (parts.directory / ".0-4.parquet.abc.tmp").write_text("half")
    begin(tmp_path)
    assert list(parts.directory.iterdir()) == []
