"""Files are whole or untouched, whatever happens while they are written."""

import json
import os
import stat
import time

import pytest

from mocokit.files import is_utf8, remove_temporary, replacing, utf8_path, write_json, write_text


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "first é\n")
    write_text(path, "second\n")
    assert path.read_text(encoding="utf-8") == "second\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_old_file_stays_if_writing_fails(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of it")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_done(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_have_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640


def test_json_round_trips(tmp_path):
    value = {"a": [1, 2.5, None], "é": {"b": True}}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")


@pytest.mark.skipif(os.name == "nt", reason="names there are text")
@pytest.mark.parametrize("name", ["a.txt", "caf\u00e9 \U0001f98b.txt", "b\udce9d.txt"])
def test_readers_that_take_utf8_alone_get_a_name_that_is(tmp_path, name):
    try:
        (tmp_path / name).write_text("content")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    place = utf8_path(tmp_path / name)
    assert is_utf8(place)
    assert is_utf8(name) == (place == str(tmp_path / name))
    with open(place, encoding="utf-8") as first, open(place, encoding="utf-8") as second:
        assert first.read() == second.read() == "content"


def test_temporary_files_of_one_path_are_removed(tmp_path):
    with replacing(tmp_path / "a[1].txt") as temporary:
        copy = temporary.with_name(temporary.name.replace(".tmp", "x.tmp"))
        copy.write_text("left by a killed process")
    for name in ("b.txt", ".a[2].txt.abc.tmp"):
        (tmp_path / name).write_text("of another")
    remove_temporary(tmp_path / "a[1].txt")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].txt", "b.txt", ".a[2].txt.abc.tmp"}


def test_what_was_left_long_ago_is_removed_with_the_next_writing_and_what_is_at_work_is_not(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as living:
        for name, age in (("old", 7200), ("young", 600), ("of a clock that was wrong", -7200)):
            left = tmp_path / f".a.txt.{name}.tmp"
            left.touch()
            os.utime(left, (time.time() - age,) * 2)
        write_text(path, "of another process")
        assert {file.name for file in tmp_path.iterdir()} == {"a.txt", ".a.txt.young.tmp", living.name}
