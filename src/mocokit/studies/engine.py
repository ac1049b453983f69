"""Carry out the trials of a study: by Ray, on one machine or a cluster, or else one after the other."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Any

from mocokit.errors import Interrupted, UserError, reason_of
from mocokit.machine import usable_cores
from mocokit.studies.trial import LOG

TRIAL = "mocokit.studies.trial"  # the module of a trial's process
ATTEMPTS = 2  # of a trial that fails
OBJECT_STORE = 80_000_000  # bytes, about the least that Ray takes: trials hand over names alone
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOOK_SECONDS = 60.0  # between lines of progress, at most
POLL_SECONDS = 0.2  # between looks whether a trial has ended
STOP_SECONDS = 60.0  # for trials to write their checkpoints


@dataclass(frozen=True)
class Resources:
    """What each trial gets, and which Ray cluster, if not one of this machine."""

    cpus: int = 1
    gpus: float = 0.0
    ray_address: str | None = None


@dataclass
class State:
    """How far the trials are; ``failed`` are the last lines of those that failed twice, by directory."""

    total: int
    done: int = 0
    running: int = 0
    failed: dict[Path, str] = field(default_factory=dict)


def has_ray() -> bool:
    """Whether Ray is installed."""
    return find_spec("ray") is not None


def parallel(resources: Resources) -> int:
    """How many trials run at once on this machine."""
    if not has_ray():
        return 1
    import torch

    return at_once(resources, {"CPU": usable_cores(), "GPU": torch.cuda.device_count()})


def at_once(resources: Resources, there: Mapping[str, float]) -> int:
    """How many trials so many CPUs and GPUs are enough for; at least one."""
    needed = {"CPU": resources.cpus, "GPU": resources.gpus}
    return max(1, min(int(there.get(name, 0) // each) for name, each in needed.items() if each))


def attempt(module: str, directory: str, threads: int, folder: str) -> str | None:
    """One process of one trial, in ``folder``, its output added to its log: None, or the last line if it failed."""
    log = Path(directory) / LOG
    command = [sys.executable, "-m", module, directory]
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    with log.open("ab") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=DEVNULL, stdout=file, stderr=STDOUT)
        try:
            while (code := process.poll()) is None:
                time.sleep(POLL_SECONDS)  # Ray's interrupt is no signal, which would end a wait
        except BaseException:  # the user stops the study: the trial writes its checkpoint first
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if code == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if code > 0 and lines else f"killed by signal {-code}"


def run_trials(directories: Sequence[Path], resources: Resources, report: Callable[[State], None]) -> dict[Path, str]:
    """Run the trials in these directories; of those that failed twice the last line of the log.

    ``report`` is told after each trial, and once a minute, how far they are.

    Raises:
        UserError: a Ray cluster is named, and Ray not installed or the cluster out of reach.
        Interrupted: the user stopped it; the trials' checkpoints are kept.
    """
    state = State(len(directories))
    if resources.ray_address and not has_ray():
        raise UserError(f"--ray-address {resources.ray_address}: needs Ray; run pip install 'mocokit[study]'")
    if not directories:
        return {}
    outcomes = _by_ray if has_ray() else _one_by_one
    before = _interrupt_by_sigterm()
    try:
        with redirect_stdout(sys.stderr):  # Ray tells there of machines that die; stdout is for results
            for directory, problem in outcomes(directories, resources, state, report):
                if problem is None:
                    state.done += 1
                else:
                    state.failed[directory] = problem
                report(state)
    except KeyboardInterrupt:
        raise Interrupted("stopped; run the same command to go on from the trials' checkpoints") from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return state.failed


def _interrupt_by_sigterm() -> Any:
    """From here on SIGTERM is Ctrl-C; gives the handler of before, None where only the main thread may set one."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.default_int_handler)


Outcomes = Iterator[tuple[Path, str | None]]


def _one_by_one(
    directories: Sequence[Path], resources: Resources, state: State, report: Callable[[State], None]
) -> Outcomes:
    state.running = 1
    for number, directory in enumerate(directories, start=1):
        problem = None
        for _ in range(ATTEMPTS):
            if (problem := attempt(TRIAL, str(directory.absolute()), resources.cpus, os.getcwd())) is None:
                break
        state.running = int(number < len(directories))
        yield directory, problem


def _by_ray(
    directories: Sequence[Path], resources: Resources, state: State, report: Callable[[State], None]
) -> Outcomes:
    """Each trial a task. Ray starts one again whose worker or machine died; one that fails is started again here."""
    # No report to Ray's makers; and no end of the largest process where memory, of the page cache too, gets scarce.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    import ray

    here = {"num_cpus": usable_cores(), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        options = {"address": resources.ray_address} if resources.ray_address else {"address": "local", **here}
        ray.init(log_to_driver=False, logging_level="ERROR", **options)  # type: ignore[arg-type]
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        why = reason_of(error)
        if not resources.ray_address:
            raise UserError(f"Ray does not start here ({why}); without it trials run one after the other") from None
        remedy = "see that it runs; if it was started with a token, set RAY_AUTH_MODE=token here, too"
        raise UserError(f"--ray-address {resources.ray_address}: no Ray there ({why}); {remedy}") from None
    _interrupt_by_sigterm()  # Ray has set a handler of its own, which ends the process on the spot
    started: dict[Any, tuple[Path, int]] = {}
    try:
        total = ray.cluster_resources()
        for name, needed in (("CPU", resources.cpus), ("GPU", resources.gpus)):
            if needed > total.get(name, 0):
                raise UserError(f"--trial-{name.lower()}s {needed:g}: Ray has {total.get(name, 0):g} here; give less")
        task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=ATTEMPTS)(attempt)

        def start(directory: Path) -> Any:
            return task.remote(TRIAL, str(directory.absolute()), resources.cpus, os.getcwd())

        started |= {start(directory): (directory, 1) for directory in directories}
        slots = at_once(resources, total)
        looked = time.monotonic()
        while started:
            state.running = min(slots, len(started))
            ready, _ = ray.wait(list(started), timeout=LOOK_SECONDS)
            if not ready and time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                report(state)
            for future in ready:
                directory, number = started.pop(future)
                try:
                    problem = ray.get(future)
                except ray.exceptions.RayError as error:  # its worker died again and again
                    problem = reason_of(getattr(error, "cause", None) or error)
                if problem is not None and number < ATTEMPTS:
                    started[start(directory)] = (directory, number + 1)
                else:
                    state.running = min(slots, len(started))
                    yield directory, problem
    except BaseException:  # the user stops the study: trials write their checkpoints before Ray's workers go
        for future in started:
            ray.cancel(future)
        if started:
            ray.wait([*started], num_returns=len(started), timeout=STOP_SECONDS)
        raise
    finally:
        ray.shutdown()
