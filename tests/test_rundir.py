"""Where the files of a run lie, what makes a directory a run, and what is told if they can't be read or written."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.errors import UserError
from mocokit.rundir import RunDirectory, free_name, run_name


def test_a_directory_is_empty_until_it_holds_more_than_what_comes_before_the_configuration(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert run.is_empty()
    run.path.mkdir()
    for name in ("skipped.csv", "data.json", ".config.yaml.abc.tmp"):
        (run.path / name).write_text("")
    assert run.is_empty()
    (run.path / "notes.txt").write_text("mine")
    assert not run.is_empty()


def test_all_files_lie_inside(tmp_path):
    run = RunDirectory(tmp_path)
    files = [run.config, run.checkpoint, run.encoder, run.metrics, run.tensorboard, run.images, run.skipped, run.data]
    assert all(file.is_relative_to(tmp_path) for file in [*files, run.finetuning, run.result("knn")])


def test_results_round_trip_and_damaged_ones_count_as_none(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_result("knn") is None
    run.write_result("knn", {"encoder": {"top1": 0.5}})
    assert run.read_result("knn") == {"encoder": {"top1": 0.5}}
    for text in ("", "[1]", "{", "\x00", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        run.result("knn").write_text(text)
        assert run.read_result("knn") is None
    run.result("knn").write_text('{"a": 1, "b": null}')
    assert run.read_result("knn", "a", "b") == {"a": 1, "b": None}
    assert run.read_result("knn", "a", "c") is None


def test_a_fingerprint_that_cannot_be_read_is_one_line_with_the_way_out(tmp_path):
    """It was said to be that of other images."""
    run = RunDirectory(tmp_path)
    for text in (None, "", "[]", '{"fingerprint": null}', '{"weights": "w"}'):
        if text is not None:
            run.data.write_text(text)
        for of in ("fingerprint", "weights"):
            with pytest.raises(
                UserError, match=r"data.json: gone or damaged; restore it, or begin anew: another --out"
            ):
                run.read_fingerprint(of)
    run.data.write_text('{"fingerprint": "abc"}')
    assert run.read_fingerprint() == "abc"
    assert run.read_fingerprint("weights") is None


def test_no_run_and_a_configuration_that_is_no_text(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory(tmp_path).read_config()
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"config.yaml: not a text file"):
        RunDirectory(tmp_path).read_config()


@given(st.sampled_from(["digits", "birds"]), st.sampled_from(["moco-v2", "folder/mine.yaml", "mine.yaml"]))
def test_runs_are_named_after_data_and_recipe(data, recipe):
    assert run_name(data, "auto") == data
    assert run_name(data, recipe) == f"{data}-{'moco-v2' if recipe == 'moco-v2' else 'mine'}"


def test_a_run_of_data_whose_name_is_not_utf8_has_a_name_that_is():
    assert run_name(os.fsdecode(b"b\xe9d-\xff"), "auto") == "b_d-_"
    assert run_name("b\u00e9d \U0001f98b", "auto") == "b\u00e9d \U0001f98b"


HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from mocokit.rundir import RunDirectory
def load():
    print("held", flush=True)  # it has let go of the lock that it was born with
    time.sleep(3)
with RunDirectory(Path(sys.argv[1])).locked():
    child = multiprocessing.get_context("fork").Process(target=load)
    child.start()  # as a loading process, which outlives a killed command for a while
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_second_command_is_refused_and_the_lock_of_a_killed_one_is_taken_over(tmp_path, capfd):
    run = RunDirectory(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    owner = f"process {holder.pid} on {socket.gethostname()}"
    try:
        with pytest.raises(UserError, match=f"{run.path}: {owner} writes there; wait for it"), run.locked():
            pass
        assert holder.poll() is None
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert run.is_empty()
    with run.locked():
        assert capfd.readouterr().err == f"{run.path}: {owner} was killed; its place is taken\n"
        assert json.loads(run.owner.read_text())["pid"] == os.getpid()
    assert list(run.path.iterdir()) == []  # nothing was written, so nothing is left


def test_temporary_files_of_killed_commands_are_removed_with_the_next(tmp_path):
    """But none of a user, and none that a verb may be writing, which takes no lock."""
    run = RunDirectory(tmp_path)
    removed = [run.checkpoint, run.encoder, run.config, run.owner]
    kept = [run.path / "features.parquet", run.result("embed"), run.path / "report.html"]
    for file in (*removed, *kept, run.result("knn")):
        file.parent.mkdir(exist_ok=True)
        file.with_name(f".{file.name}.ab_cd123.tmp").touch()
    os.utime(run.result("knn").with_name(".knn.json.ab_cd123.tmp"), (0, 0))
    with run.locked():
        left = {file.name for file in tmp_path.rglob("*.tmp")}
    assert left == {f".{file.name}.ab_cd123.tmp" for file in kept}


def test_the_lock_of_another_machine_is_left_with_the_way_out(tmp_path):
    run = RunDirectory(tmp_path)
    run.owner.write_text('{"pid": 7, "host": "elsewhere"}')
    for _ in range(2):
        why = rf"process 7 on elsewhere .* if it has ended, remove {run.owner} and"
        with pytest.raises(UserError, match=why), run.locked():
            pass
    run.owner.unlink()
    with run.locked():
        pass


def test_a_file_in_the_place_of_a_run_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^--out {tmp_path / 'file'}: .* is no folder"):
        RunDirectory(tmp_path / "file").is_empty()
    with pytest.raises(UserError, match="a file is in the way"):
        RunDirectory(tmp_path / "file" / "run").write_result("knn", {})


def test_where_nothing_can_be_locked_commands_go_on(tmp_path):
    """They only read, or fail when they write and say why."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with RunDirectory(path).locked():
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_is_cleared_unless_another_command_writes_inside(tmp_path):
    run, inside = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run" / "finetune")
    run.write_result("knn", {"top1": 1})
    run.config.touch()
    with run.locked():
        with inside.locked(), pytest.raises(UserError, match=r"finetune: process \d+ on .* writes there"):
            run.clear()
        assert run.read_result("knn")
        run.clear()
        assert set(run.path.iterdir()) == {run.lock, run.owner}


def test_what_is_not_the_runs_own_stays(tmp_path, capfd):
    """A table of labels, say, that was filled in for `select --given`; the directory stays a run."""
    run = RunDirectory(tmp_path / "run")
    run.write_result("knn", {"top1": 1})
    (run.path / "mine").mkdir()
    for path in (run.config, run.encoder, run.path / "select.csv", run.path / "mine" / "a.txt"):
        path.touch()
    run.clear()
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*")}
    assert left == {"config.yaml", "select.csv", "mine", "mine/a.txt"}
    assert "nothing is removed: mine, select.csv\n" in capfd.readouterr().err


def test_a_free_name_is_the_first_that_is_not_there(tmp_path):
    run = tmp_path / "digits"
    for number in (2, 3, 4):
        assert free_name(run) == tmp_path / f"digits-{number}"
        (tmp_path / f"digits-{number}").mkdir()
    (tmp_path / "digits-3").rmdir()
    assert free_name(run) == tmp_path / "digits-3"
