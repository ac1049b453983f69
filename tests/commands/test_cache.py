"""``mocokit cache``: all that is kept is listed with its size; what is removed is decoded again, and nothing in use."""

import gc
import json
import os
import time

import pytest

import mocokit
from mocokit.cli import main
from mocokit.commands.cache import _age, _size
from mocokit.data.cache import Entry
from mocokit.data.store import open_store
from mocokit.errors import UserError
from tests.helpers import class_folders


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_empty_cache(root, capfd):
    assert main(["cache"]) == 0
    assert capfd.readouterr() == ("", f"{root}: 0 entries, 0 bytes\n")


def test_entries_are_listed_and_cleared_but_those_in_use(root, tmp_path, capfd):
    unused = open_store(str(class_folders(tmp_path / "birds", height=16, width=16)), image_size=8)
    used = open_store(str(class_folders(tmp_path / "flowers")), image_size=8)
    names = [unused.path.name, used.path.name]
    del unused
    gc.collect()
    (root / "cifar10").mkdir()
    (root / "cifar10" / "archive").write_bytes(bytes(2_000_000))
    sizes = [sum(file.stat().st_size for file in (root / "images" / name).iterdir()) for name in names]
    old = time.time() - 3 * 86400
    os.utime(root / "images" / names[0], (old, old))
    capfd.readouterr()

    assert main(["cache", "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert [(e["name"], e["bytes"], e["in_use"]) for e in result["entries"]] == [
        ("cifar10", 2_000_000, False), (names[0], sizes[0], False), (names[1], sizes[1], True)
    ]  # fmt: skip
    assert (result["path"], result["bytes"], result["removed"]) == (str(root), 2_000_000 + sum(sizes), [])
    assert result["entries"][1]["age_s"] in range(3 * 86400, 3 * 86400 + 100)
    lines = err.splitlines()
    assert lines[0] == f"{root}: 3 entries, 2.0 MB"
    assert lines[1].split()[:2] == ["2.0", "MB"]
    assert lines[2].endswith(f"3 days old  {names[0]}")
    assert lines[3].endswith(f"{names[1]}  in use")

    (root / "images" / "link").symlink_to(tmp_path / "birds")
    (root / "images" / "note.txt").write_text("not of the cache")
    cleared = mocokit.cache(clear=True)
    for stays in ("link", "note.txt"):  # what is no entry is left alone
        (root / "images" / stays).unlink()
    assert (tmp_path / "birds").is_dir()
    assert cleared["removed"] == ["cifar10", names[0]]
    assert [entry["name"] for entry in cleared["entries"]] == [names[1]]
    assert [path.name for path in (root / "images").iterdir()] == [names[1]]
    assert not (root / "cifar10").exists()
    assert len(used.splits["train"].names)  # which is read only now
    lines = capfd.readouterr().err.splitlines()
    assert lines[:2] == [f"{root}: removed 2 entries, 2.0 MB", f"{root}: 1 entry, {_size(sizes[1])}"]
    assert not open_store(str(tmp_path / "birds"), image_size=8).from_cache


def test_what_cannot_be_removed_is_told(root, tmp_path, capfd, monkeypatch):
    entry = open_store(str(class_folders(tmp_path / "birds")), image_size=8).path
    gc.collect()

    def denied(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.rename", denied)
    with pytest.raises(UserError, match=f"1 entry could not be removed, the first is {entry}; check the perm"):
        mocokit.cache(clear=True)


def test_sizes_and_ages_are_told_in_the_unit_that_suits(tmp_path):
    assert [_size(n) for n in (0, 999, 1000, 2_345_678, 10**12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "2.3 MB",
        "1.0 TB",
    ]
    for seconds, told in (
        (1, "1 seconds old"),
        (119, "119 seconds old"),
        (120, "2 minutes old"),
        (49 * 3600, "2 days old"),
    ):
        assert _age(Entry(tmp_path, 0, time.time() - seconds, False)) == told
