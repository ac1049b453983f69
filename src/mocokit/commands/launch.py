"""``--devices N``: the same command N times on this machine, watched until all have ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mocokit.errors import Interrupted, UserError
from mocokit.machine import usable_cores

GRACE = 30.0  # seconds that the others get to end by themselves when a process has failed


def launch(verb: str, options: Mapping[str, Any], processes: int, overwrite: bool) -> dict[str, Any]:
    """Run ``mocokit VERB`` with these options in several processes on this machine, and wait for them.

    They are told who they are by torchrun's environment variables. SIGINT and SIGTERM are passed on to all.
    Returns the result of the first.

    Raises:
        UserError: a process failed, and has told why unless it was killed; the others are ended.
        Interrupted: a signal stopped the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "options.yaml"
        file.write_text(yaml.safe_dump(dict(options)), encoding="utf-8")
        command = [sys.executable, "-m", "mocokit", verb, "--config", str(file), "--json"]
        command += ["--overwrite"] if overwrite else []
        common = os.environ | {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(processes))),
        }
        results = [Path(folder) / f"{rank}.json" for rank in range(processes)]
        started = []
        for rank, result in enumerate(results):
            with result.open("wb") as stdout:
                environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # In a session of its own, so that Ctrl-C in a terminal reaches it once, through this process.
                started.append(
                    subprocess.Popen(command, env=environment, stdout=stdout, start_new_session=True)
                )
        try:
            with _passing_signals_on(started) as came:
                _wait(started)
        finally:
            _end(started)
        _judge([process.returncode for process in started], bool(came))
        return dict(json.loads(results[0].read_text(encoding="utf-8")))


def _judge(codes: list[int], stopped: bool) -> None:
    """Tell how the processes ended, unless all did well.

    Raises:
        UserError, Interrupted: as `launch`.
    """
    if any(codes) and (stopped or 130 in codes):
        raise Interrupted("stopped; run the same command to go on")
    killed = [(rank, -code) for rank, code in enumerate(codes) if code < 0]
    if killed:
        rank, number = killed[0]
        raise UserError(
            f"process {rank} was ended by {signal.Signals(number).name}; run the same command to go on from the "
            f"last checkpoint"
        )
    if any(codes):
        raise UserError(
            f"exit codes of the {len(codes)} processes are {codes}; the first message above says why"
        )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _threads(processes: int) -> int:
    return max(1, usable_cores() // processes)


def _wait(processes: list["subprocess.Popen[bytes]"]) -> None:
    """Until all have ended, or `GRACE` seconds after the first has failed."""
    deadline = float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if any(process.returncode for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(0.1)


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def _passing_signals_on(processes: list["subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Yields the list of the signals that came."""
    came: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        came.append(number)
        for process in processes:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
