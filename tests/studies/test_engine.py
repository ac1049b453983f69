"""Trials one after the other and on real Ray: all are done, failures are told, nothing is lost when the driver dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest

from mocokit.errors import UserError
from mocokit.studies import engine
from mocokit.studies.engine import Resources, State, attempt, run_trials
from tests.tiny_runs import free_port

FAKE = "tests.studies.fake_trial"
ENGINES = [pytest.param(False, id="one by one"), pytest.param(True, id="ray", marks=pytest.mark.slow)]


@pytest.fixture
def fake(monkeypatch):
    """`fake(by_ray)` replaces the trials, and chooses the engine of two workers."""

    def choose(by_ray: bool) -> None:
        if by_ray:
            pytest.importorskip("ray")
        monkeypatch.setattr(engine, "TRIAL", FAKE)
        monkeypatch.setattr(engine, "has_ray", lambda: by_ray)
        monkeypatch.setattr(engine, "usable_cores", lambda: 2)

    return choose


def trials(folder: Path, *requests: dict[str, object]) -> list[Path]:
    directories = [folder / f"trial{number}" for number in range(len(requests))]
    for number, (directory, request) in enumerate(zip(directories, requests, strict=True)):
        directory.mkdir(parents=True)
        (directory / "trial.json").write_text(json.dumps({"value": number} | request))
    return directories


def runs(directories: list[Path]) -> list[int]:
    return [len((path / "runs.txt").read_text().splitlines()) for path in directories]


@pytest.mark.parametrize("by_ray", ENGINES)
def test_all_are_done_and_one_that_fails_twice_is_told(fake, tmp_path, by_ray):
    fake(by_ray)
    directories = trials(tmp_path, {}, {"fails": 1}, {"fails": 9}, *[{}] * 5)
    told: list[State] = []
    failed = run_trials(directories, Resources(), lambda state: told.append(copy(state)))
    assert failed == {directories[2]: "luck"}
    assert runs(directories) == [1, 2, 2, *[1] * 5]
    for number, directory in enumerate(directories):
        if number != 2:
            assert json.loads((directory / "result.json").read_text()) == {"value": 2 * number}
    assert (told[-1].done, told[-1].running, len(told[-1].failed), told[-1].total) == (7, 0, 1, 8)
    assert (directories[2] / "log.txt").read_text() == "a long story\nout of\nluck\n" * 2


def test_a_trial_has_its_threads_and_a_killed_one_is_told(tmp_path, monkeypatch):
    (directory,) = trials(tmp_path, {})
    told = "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'] + os.getcwd())"
    for name, program in (("teller", told), ("killer", "import os; os.kill(os.getpid(), 9)")):
        (tmp_path / f"{name}.py").write_text(program)
    assert attempt("teller", str(directory), 3, str(tmp_path)) == f"3{tmp_path}"
    assert attempt("killer", str(directory), 1, str(tmp_path)) == "killed by signal 9"


def test_a_cluster_needs_ray(fake, tmp_path):
    fake(False)
    with pytest.raises(UserError, match=r"--ray-address auto: needs Ray; run pip install 'mocokit\[study\]'"):
        run_trials([], Resources(ray_address="auto"), print)


@pytest.mark.slow
def test_more_than_there_is_is_refused(fake, tmp_path):
    fake(True)
    with pytest.raises(UserError, match="--trial-cpus 64: Ray has 2 here; give less"):
        run_trials(trials(tmp_path, {}), Resources(cpus=64), print)


DRIVER = """
import sys
from pathlib import Path
from mocokit.studies import engine
engine.TRIAL, engine.has_ray, engine.usable_cores = "tests.studies.fake_trial", lambda: sys.argv[1] == "True", lambda: 2
paths = sorted(Path(sys.argv[2]).iterdir())
missing = [path for path in paths if not (path / "result.json").exists()]
resources = engine.Resources(ray_address=dict(enumerate(sys.argv)).get(3))
out = sys.stdout
report = lambda state: print(state.done, state.running, file=out, flush=True)
failed = engine.run_trials(missing, resources, report)
print(len(missing), len(failed))
"""


@pytest.mark.parametrize("by_ray", ENGINES)
def test_a_driver_that_is_killed_loses_nothing(tmp_path, by_ray):
    if by_ray:
        pytest.importorskip("ray")
    folder = tmp_path / "trials"
    directories = trials(folder, *[{"sleep": 0.5}] * 8)
    command = [sys.executable, "-c", DRIVER, str(by_ray), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        while int(driver.stdout.readline().split()[0]) < 3:
            pass
        os.kill(driver.pid, signal.SIGKILL)
    time.sleep(1.5)  # a trial that was under way ends by itself
    done = [path for path in directories if (path / "result.json").exists()]
    assert 3 <= len(done) < 8
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert again.stdout.splitlines()[-1] == f"{8 - len(done)} 0", again.stderr
    assert all((path / "result.json").exists() for path in directories)
    assert runs(done) == [1] * len(done)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("by_ray", ENGINES)
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_trials_save_before_a_study_that_is_stopped_ends(tmp_path, by_ray, sig):
    if by_ray:
        pytest.importorskip("ray")
    directories = trials(tmp_path / "trials", *[{"sleep": 60, "polite": True}] * 3)
    command = [sys.executable, "-c", DRIVER, str(by_ray), str(tmp_path / "trials")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as driver:
        while sum((path / "ready.txt").exists() for path in directories) < 1 + by_ray:
            assert driver.poll() is None
            time.sleep(0.05)
        os.kill(driver.pid, sig)
        errors = driver.communicate(timeout=60)[1]
    assert "Interrupted: stopped; run the same command to go on" in errors
    assert driver.returncode == 1  # of an exception, not of a signal
    under_way = [path for path in directories if (path / "ready.txt").exists()]
    assert all((path / "checkpoint.txt").exists() for path in under_way)


RAY = Path(sys.executable).parent / "ray"


@contextmanager
def node(*where: str) -> Iterator[subprocess.Popen]:
    """A machine of a cluster, with one CPU, as the manual starts it; killed at the end, with all that Ray started."""
    command = [str(RAY), "start", *where, "--num-cpus", "1", "--object-store-memory", "80000000", "--block"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while "Ray runtime started" not in (line := process.stdout.readline()):
                assert line, "it has not started"
            yield process
        finally:
            die(process)


def die(process: subprocess.Popen) -> None:
    """The end of a machine: Ray's workers see that its own process on it has gone, and end as well."""
    if process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(ProcessLookupError):  # it may end by itself meanwhile
                os.kill(int(pid), signal.SIGKILL)
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes as Linux does")
def test_a_cluster_loses_a_machine(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    folder, port = tmp_path / "trials", str(free_port())
    directories, address = trials(folder, *[{"sleep": 1}] * 10), f"127.0.0.1:{port}"
    command = [sys.executable, "-c", DRIVER, "True", str(folder), address]
    with (
        TemporaryDirectory() as short,  # as the paths of sockets must be
        node("--head", "--port", port, "--include-dashboard=false", "--temp-dir", short),
        node("--address", address) as second,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver,
    ):
        for line in driver.stdout:
            done, running = map(int, line.split())
            if done == 4:
                assert running == 2
                die(second)
    assert (done, running) == (10, 0)  # of the last line: how many were missing, and failed
    assert all((path / "result.json").exists() for path in directories)
    assert sum(runs(directories)) in (10, 11)  # the one that was under way may have been done again


def test_where_nothing_is_to_do_nothing_is_started(fake, monkeypatch):
    fake(True)
    monkeypatch.setattr(engine, "_by_ray", mock.Mock(side_effect=AssertionError))
    assert run_trials([], Resources(), print) == {}


@pytest.mark.slow
def test_a_trial_that_cannot_start_says_why(fake, tmp_path):
    fake(True)
    gone = tmp_path / "gone"  # as on a machine that does not have the folder
    assert "No such file or directory" in run_trials([gone], Resources(), lambda state: None)[gone]


def test_trials_at_once_are_as_many_as_both_cpus_and_gpus_are_enough_for():
    there = {"CPU": 16.0, "GPU": 1.0}
    assert engine.at_once(Resources(cpus=4), there) == 4
    assert engine.at_once(Resources(cpus=1, gpus=0.5), there) == 2
    assert engine.at_once(Resources(cpus=1, gpus=1), {"CPU": 16.0}) == 1  # refused elsewhere
