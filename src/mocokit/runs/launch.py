"""``--devices N``: the same command N times on this machine, started and watched by torch's own launcher."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mocokit.errors import Interrupted, UserError
from mocokit.machine import usable_cores

INTERRUPTED = 130  # exit code of a process that a signal stopped and that has saved its checkpoint
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAUNCHER = "MOCOKIT_LAUNCHER"  # tells the processes the id of the one that has started them, and its temporary folder
LOOK_SECONDS = 0.5


def launch(verb: str, options: Mapping[str, Any], processes: int, switches: Sequence[str] = ()) -> dict[str, Any]:
    """Run ``mocokit VERB`` with these options and ``switches`` in several processes on this machine, and wait for them.

    SIGINT and SIGTERM are passed on to all. Returns the result of the first.

    Raises:
        UserError: a process failed, and has said why unless it was killed; the others are ended.
        Interrupted: a signal stopped the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "options.yaml"
        file.write_text(yaml.safe_dump(dict(options)), encoding="utf-8")
        arguments = ["-m", "mocokit", verb, "--config", str(file), "--json"]
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.OUT),
        )
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we tell what happened
        try:
            with _environment_of_each(processes, folder), _handlers_restored():
                elastic_launch(config, sys.executable)(*arguments, *switches)
        except SignalException:
            raise Interrupted("stopped; run the same command to go on") from None
        except ChildFailedError as error:
            raise _judge({rank: failure.exitcode for rank, failure in error.failures.items()}) from None
        first = next(Path(folder).glob("**/0/stdout.log"))
        return dict(json.loads(first.read_text(encoding="utf-8")))


def _judge(exit_codes: Mapping[int, int]) -> UserError | Interrupted:
    """How the processes failed, by rank; a killed one has a negative exit code."""
    if INTERRUPTED in exit_codes.values():
        return Interrupted("stopped; run the same command to go on")
    for rank, code in exit_codes.items():
        if code < 0:
            return UserError(
                f"process {rank} was ended by {signal.Signals(-code).name}; run the same command to go on from the "
                f"last checkpoint"
            )
    codes = ", ".join(f"{code} of process {rank}" for rank, code in exit_codes.items())
    return UserError(f"the run ended with exit code {codes}; the first message above says why")


@contextmanager
def _environment_of_each(processes: int, folder: str) -> Iterator[None]:
    """The processes share the cores, unless the user says how many threads each has; they import nothing from the
    current folder, where ``python -m`` would look first; and they know who has started them."""
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ[LAUNCHER] = f"{os.getpid()}:{folder}"
    try:
        yield
    finally:
        for name in ("OMP_NUM_THREADS", "PYTHONSAFEPATH", LAUNCHER):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def end_with_launcher() -> None:
    """In a process that `launch` has started: SIGTERM, so that a checkpoint is written, when the launcher is gone; one
    that is killed passes no signal on, and its temporary folder stays. In every other process nothing."""
    launcher, _, folder = os.environ.pop(LAUNCHER, "").partition(":")
    if launcher:
        threading.Thread(target=_end_after, args=(int(launcher), folder), daemon=True).start()


def _end_after(launcher: int, folder: str) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """The launcher leaves signal handlers of its own behind."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
