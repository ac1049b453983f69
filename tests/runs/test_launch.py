"""``--devices N``: processes that are started, watched, stopped and killed as users and machines do it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

import mocokit as package
from mocokit.cli import main
from mocokit.errors import Interrupted, UserError
from mocokit.rundir import RunDirectory
from mocokit.runs.launch import LAUNCHER, _environment_of_each, _judge
from tests.tiny_runs import TINY, command, flags_of, free_port, meeting, mocokit, tiny_data

LONG = TINY | {"epochs": 24, "monitor_every": 0, "checkpoint_every": 0.2, "devices": 2}  # 120 steps


def arguments(data: Path, out: Path, **options: object) -> list[str]:
    return ["pretrain", str(data), "--out", str(out), *flags_of(options)]


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_process_ends_the_run_in_a_clear_error_and_the_same_command_goes_on(tmp_path):
    data = tiny_data(tmp_path)
    whole = mocokit(*arguments(data, tmp_path / "whole", **LONG))
    assert whole.returncode == 0, whole.stderr
    assert "2 processes of 4 images each: batch 8" in whole.stderr

    out = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command(*arguments(data, out, **LONG)), stderr=subprocess.PIPE, text=True, env=environment)
    checkpoint = out / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(children(run.pid)) == 2
    killed = time.monotonic()
    os.kill(children(run.pid)[1], signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert run.returncode == 2
    assert "was ended by SIGKILL; run the same command to go on" in errors
    assert "Traceback" not in errors

    resumed = mocokit(*arguments(data, out, **LONG))
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "encoder.safetensors").exists()
    weights = [(folder / "encoder.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
    header = int.from_bytes(weights[0][:8], "little") + 8
    assert weights[0][header:] == weights[1][header:]  # the header has the same length, or this fails


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_stops_all_processes_and_one_process_goes_on(tmp_path):
    data, out = tiny_data(tmp_path), tmp_path / "run"
    run = subprocess.Popen(
        command(*arguments(data, out, **LONG)),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "run the same command to go on" in errors
    assert "Traceback" not in errors

    assert main(arguments(data, out, **LONG | {"devices": 1})) == 0
    rows = (out / "metrics.csv").read_text().splitlines()[1:]
    steps = [int(row.split(",")[0]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 120


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended may wait for somebody to ask."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state[:1] not in ("", "Z")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_processes_end_with_a_killed_launcher_and_the_same_command_goes_on(tmp_path):
    """Also before they train; after the checkpoint of where they were, with nothing left among temporary files."""
    data, out, temporary = tiny_data(tmp_path), tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    start = command(*arguments(data, out, **LONG | {"checkpoint_every": 1000}))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    log, metrics = tmp_path / "log", out / "metrics.csv"
    for trained in (False, True):
        with log.open("w") as file:
            run = subprocess.Popen(start, stderr=file, env=environment)
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 1 if trained else children(run.pid)[1:]):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes = children(run.pid)
        run.kill()
        run.wait()
        assert len(processes) == 2
        deadline = time.monotonic() + 60
        while any(map(is_running, processes)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (out / "checkpoints" / "last.ckpt").exists() == trained
        assert not list(temporary.glob("tmp*")), "options and logs"
    assert "stopped at step" in log.read_text()
    before = metrics.read_text()  # with speeds, which differ each time
    assert main(arguments(data, out, **LONG | {"devices": 1})) == 0
    assert metrics.read_text().startswith(before)


@pytest.mark.parametrize("switches", [{}, {"extend": True}, {"overwrite": True, "extend": True}])
def test_switches_are_passed_on(monkeypatch, switches):
    seen = []

    def start(*arguments):
        seen.extend(arguments)
        raise SignalException("as if stopped", signal.SIGINT)

    monkeypatch.setattr("mocokit.runs.launch.elastic_launch", lambda config, program: start)
    with pytest.raises(Interrupted):
        package.pretrain("digits", devices=2, **switches)
    assert {word for word in seen if word.startswith("--")} == {"--config", "--json"} | {
        f"--{name}" for name in switches
    }


LATE = """
import sys, time
from mocokit import cli
from mocokit.commands import pretrain
start = pretrain._begin
pretrain._begin = lambda *arguments: (time.sleep(4), start(*arguments))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_no_process_goes_on_from_a_run_that_another_is_about_to_overwrite(tmp_path):
    data, out = tiny_data(tmp_path), tmp_path / "run"
    options = TINY | {"monitor_every": 0}
    assert main(arguments(data, out, **options)) == 0
    before = [row.split(",")[0] for row in (out / "metrics.csv").read_text().splitlines()]
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LATE, *arguments(data, out, **options), "--overwrite"],
            env=meeting(2, rank, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    assert [row.split(",")[0] for row in (out / "metrics.csv").read_text().splitlines()] == before


@pytest.mark.slow
def test_all_processes_refuse_a_directory_that_another_command_writes_to(tmp_path):
    data, out, port = tiny_data(tmp_path), tmp_path / "run", free_port()
    with RunDirectory(out).locked():
        started = [
            subprocess.Popen(
                command(*arguments(data, out, **TINY)), env=meeting(2, rank, port), stderr=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 2
            assert f"{out}: process {os.getpid()} on " in errors.splitlines()[-1]


@pytest.mark.slow
def test_the_first_process_measures_and_has_the_result(tmp_path):
    data, port = tiny_data(tmp_path), free_port()
    run = command(*arguments(data, tmp_path / "run", **TINY | {"epochs": 1}), "--json")
    started = [subprocess.Popen(run, env=meeting(2, rank, port), stdout=subprocess.PIPE) for rank in range(2)]
    first, second = (process.communicate(timeout=120)[0] for process in started)
    assert [process.returncode for process in started] == [0, 0]
    assert json.loads(first)["scorecard"]
    assert second == b""


@pytest.mark.slow
def test_nothing_is_imported_from_the_current_folder(tmp_path):
    data, here = tiny_data(tmp_path), tmp_path / "here"
    (here / "torch").mkdir(parents=True)
    for name in ("torch/__init__.py", "mocokit.py"):
        (here / name).write_text("raise SystemExit('from the current folder')")
    options = TINY | {"epochs": 1, "monitor_every": 0, "devices": 2}
    start = [sys.executable, "-P", "-m", "mocokit", *arguments(data, tmp_path / "run", **options)]
    done = subprocess.run(start, cwd=here, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "encoder.safetensors").exists()


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with _environment_of_each(2, "folder"):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["PYTHONSAFEPATH"]) == ("3", "1")
        assert os.environ[LAUNCHER] == f"{os.getpid()}:folder"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert not {"PYTHONSAFEPATH", LAUNCHER} & set(os.environ)


def test_how_processes_ended_is_told():
    assert "process 1 was ended by SIGKILL" in str(_judge({0: 2, 1: -9}))
    assert "exit code 2 of process 0; the first message above" in str(_judge({0: 2}))
    assert isinstance(_judge({0: 2, 1: 2}), UserError)
    assert isinstance(_judge({0: 130, 1: -15}), Interrupted)
