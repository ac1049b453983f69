"""What embed has done so far survives on disk: nothing twice, nothing missing, nothing of another command."""

import numpy as np
import pytest

import mocokit.deploy.parts as module
from mocokit.deploy.parts import Parts
from mocokit.errors import UserError


@pytest.fixture(autouse=True)
def _each_result_a_part(monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1)


def arrays(start, stop):
    return {"x": np.arange(start, stop), "y": np.array([str(i) for i in range(start, stop) if i % 3], str)}


def test_parts_are_taken_up_where_they_end(tmp_path):
    parts = Parts(tmp_path / "f.npy", {"a": 1}, overwrite=False)
    assert parts.done == 0
    for stop in (4, 5, 9):
        parts.add(stop - parts.done, arrays(parts.done, stop))
    again = Parts(tmp_path / "f.npy", {"a": 1}, overwrite=False)
    assert again.done == 9
    again.add(1, arrays(9, 10))
    assert [len(part["x"]) for part in again] == [4, 1, 4, 1]
    merged = list(again.merged(5))
    assert [len(part["x"]) for part in merged] == [5, 5]
    assert np.concatenate([part["x"] for part in merged]).tolist() == list(range(10))
    assert merged[1]["y"].tolist() == ["5", "7", "8"]
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_parts_behind_a_gap_are_not_counted(tmp_path):
    parts = Parts(tmp_path / "f.npy", {}, overwrite=False)
    for stop in (4, 5, 9):
        parts.add(stop - parts.done, arrays(parts.done, stop))
    (parts.directory / "4-5.npz").unlink()
    assert Parts(tmp_path / "f.npy", {}, overwrite=False).done == 4


def test_parts_of_something_else_are_kept_unless_overwritten(tmp_path):
    Parts(tmp_path / "f.npy", {"a": 1}, overwrite=False).add(4, arrays(0, 4))
    with pytest.raises(UserError, match="--overwrite"):
        Parts(tmp_path / "f.npy", {"a": 2}, overwrite=False)
    assert Parts(tmp_path / "f.npy", {"a": 1}, overwrite=True).done == 4
    assert Parts(tmp_path / "f.npy", {"a": 2}, overwrite=True).done == 0
    assert Parts(tmp_path / "f.npy", {"a": 2}, overwrite=False).done == 0


def test_a_damaged_part_is_named(tmp_path):
    parts = Parts(tmp_path / "f.npy", {}, overwrite=False)
    parts.add(400, arrays(0, 400))
    path = parts.directory / "0-400.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"0-400\.npz is damaged"):
        list(Parts(tmp_path / "f.npy", {}, overwrite=False))


def test_short_results_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 6)
    parts = Parts(tmp_path / "f.npy", {}, overwrite=False)
    for start in range(0, 10, 2):
        parts.add(2, arrays(start, start + 2))
    assert (parts.done, parts.position) == (6, 10)
    parts.flush()
    assert [len(part["x"]) for part in Parts(tmp_path / "f.npy", {}, overwrite=False)] == [6, 4]


def test_held_results_are_written_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1000)
    monkeypatch.setattr(module, "PART_SECONDS", 0.0)
    parts = Parts(tmp_path / "f.npy", {}, overwrite=False)
    parts.add(2, arrays(0, 2))
    assert parts.done == 2


@pytest.mark.parametrize("where", ["savez", "_append", "after"])
def test_an_interrupted_flush_can_be_repeated(tmp_path, where, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1000)
    parts = Parts(tmp_path / "f.npy", {}, overwrite=False)
    parts.add(2, arrays(0, 2))
    parts.add(3, arrays(2, 5))

    def interrupted(*_, **__):
        if where == "after":
            Parts._append(parts, 5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "savez":
            patch.setattr(module.np, "savez", interrupted)
        else:
            patch.setattr(parts, "_append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            parts.flush()
    parts.flush()
    (part,) = Parts(tmp_path / "f.npy", {}, overwrite=False)
    assert part["x"].tolist() == [0, 1, 2, 3, 4]
