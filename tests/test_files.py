"""Files are written whole, and what a killed process left half written can be removed."""

import pytest

from mocokit.files import remove_temporary, replacing


def test_a_failure_keeps_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def fail():
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_temporary_files_of_one_path_are_removed(tmp_path):
    with replacing(tmp_path / "a[1].txt") as temporary:
        copy = temporary.with_name(temporary.name.replace(".tmp", "x.tmp"))
        copy.write_text("left by a killed process")
    for name in ("b.txt", ".a[2].txt.abc.tmp"):
        (tmp_path / name).write_text("of another")
    remove_temporary(tmp_path / "a[1].txt")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].txt", "b.txt", ".a[2].txt.abc.tmp"}
