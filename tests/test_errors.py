"""Each of the two exceptions is one line on stderr and an exit code."""

import subprocess
import sys

import pytest

from mocokit.cli import main
from mocokit.errors import MOST_REASON, Interrupted, UserError, reason_of


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (Interrupted, 130)])
def test_exit_codes(error, code, monkeypatch, capfd):
    def fail(*_: object) -> None:
        raise error("one\n  thing")

    monkeypatch.setattr("mocokit.cli._run", fail)
    assert main(["knn"]) == code
    assert capfd.readouterr() == ("", "mocokit: one thing\n")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("one\n\n  thing"), "one thing"),
        (ValueError(), "ValueError"),
        (KeyError(), "KeyError"),
        (RuntimeError(" \n"), "RuntimeError"),
        (OSError(28, "No space left on device", "file"), "No space left on device"),
        (OSError("without a number"), "without a number"),
        (RuntimeError("x" * 10_000), "x" * MOST_REASON),
    ],
)
def test_the_reason_of_any_error_is_one_line(error, reason):
    assert reason_of(error) == reason


OF_SEVERAL = """
import atexit, sys, types
from mocokit import cli, errors
def fail(*_):
    raise errors.UserError("no")
sys.modules["mocokit.distributed"] = types.SimpleNamespace(world_size=lambda: 2)
cli._run = fail
atexit.register(print, "the tracker has it all", flush=True)
sys.exit(cli.main(["knn"]))
"""


def test_one_of_several_processes_leaves_with_what_trackers_hold_sent():
    done = subprocess.run([sys.executable, "-c", OF_SEVERAL], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "the tracker has it all\n", "mocokit: no\n")
