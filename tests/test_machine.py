"""Threads, memory and devices of this machine."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from mocokit.errors import UserError
from mocokit.machine import (
    CORES,
    SharedCores,
    _busy_seconds,
    blas_shared,
    computes_in_bf16,
    cpu_name,
    keep_freed_memory,
    limit_threads,
    pick_device,
    usable_cores,
    versions,
)
from tests.tiny_runs import tiny_data

ROOT = Path(__file__).parents[1]

PRETRAIN = """
import sys, torch, mocokit
from mocokit.machine import usable_cores
from tests.tiny_runs import TINY
torch.set_num_threads(int(sys.argv[3]))
mocokit.pretrain(sys.argv[1], out=sys.argv[2], **TINY)
print(usable_cores(), torch.get_num_threads())
"""


def test_threads_of_one_command_are_not_those_of_the_next():
    """Nor of a command that another one carries out, which keeps those that it was given."""
    before = torch.get_num_threads()
    cores = min(2, usable_cores())
    try:
        torch.set_num_threads(cores)
        for threads, expected in ((1, 1), (None, cores), (1, 1), (None, cores)):
            limit_threads(threads)
            assert torch.get_num_threads() == expected
        limit_threads(1)
        with CORES.shared():
            limit_threads()
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
        CORES.__init__()


@pytest.mark.parametrize("threads", [5, 1])
def test_a_run_takes_no_more_threads_than_it_has_cores(tmp_path, threads):
    """The quota is told by joblib's own variable, since a test can't have a container's."""
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "2"}
    command = [sys.executable, "-c", PRETRAIN, tiny_data(tmp_path), tmp_path / "run", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    cores, left = map(int, done.stdout.split())
    assert cores <= 2
    assert left == min(threads, cores)


class Blas:
    """As much of a library's controller as is asked for."""

    def __init__(self, place: str, threads: int) -> None:
        self.filepath, self.threads = place, threads

    def get_num_threads(self) -> int:
        return self.threads

    def set_num_threads(self, threads: int) -> None:
        self.threads = threads


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ("/env/lib/site-packages/scipy.libs/libscipy_openblas-6cdc.so", 1),
        ("/env/lib/site-packages/scipy/.dylibs/libscipy_openblas.dylib", 1),
        ("/env/lib/site-packages/numpy.libs/libscipy_openblas64_-32a4.so", 3),
        ("/home/scipy/env/lib/libopenblas.so.0", 3),  # that SciPy and NumPy share
    ],
)
def test_blas_has_the_threads_of_torch_and_that_of_scipy_one(monkeypatch, place, inside):
    library = Blas(place, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    found = Mock(select=lambda user_api: Mock(lib_controllers=[library] if user_api == "blas" else []))
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: found)
    with blas_shared():
        assert library.threads == inside
    assert library.threads == 4
    with contextlib.suppress(KeyError), blas_shared():
        raise KeyError
    assert library.threads == 4
    library.threads = 1  # fewer are left
    with blas_shared():
        assert library.threads == 1


def test_blas_takes_no_more_threads_than_there_are_cores():
    program = """
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from mocokit.machine import limit_threads
threadpool_limits(5)
limit_threads()
print(*(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"))
"""
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"1"}


FAULTS = """
import resource
from mocokit.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

unkept = faults()
assert keep_freed_memory()
faults()  # the heap grows once
print(unkept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux")
def test_large_blocks_cost_no_page_faults_once_freed_memory_is_kept():
    script = f"import ctypes, sys\nif not hasattr(ctypes.CDLL(None), 'mallopt'): sys.exit(3)\n{FAULTS}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    unkept, kept = map(int, done.stdout.split())
    assert kept < unkept / 10


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_c_libraries_are_left_alone(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr("ctypes.CDLL", refuse)
    assert keep_freed_memory() is False


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (pick_device(None), pick_device("cpu")) == ("mps", "cpu")
    with pytest.raises(UserError, match=r"--device cuda: .* use --device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize(("capability", "expected"), [(6, False), (7, False), (8, True), (9, True)])
def test_a_gpu_that_only_imitates_bfloat16_computes_in_float32(monkeypatch, capability, expected):
    """A T4, say, of 7.5: torch makes tensors in bfloat16 there, and computes with them slowly or not at all."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Mock(major=capability))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert computes_in_bf16("cuda") == expected


def test_versions_are_those_installed():
    assert versions()["torch"] == torch.__version__.split("+")[0]
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_importing_this_module_imports_no_torch():
    program = "import sys, mocokit.machine; print('torch' in sys.modules, 'joblib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def statistics(*busy: int) -> str:
    """As Linux counts, with so many hundredths of a second of work on each processor."""
    lines = [f"cpu{i} {ticks} 0 0 1000 50 0 0 0 7 0" for i, ticks in enumerate(busy)]
    return "\n".join([f"cpu  {sum(busy)} 0 0 9 9 0 0 0 0 0", *lines, "intr 1 2 3", "ctxt 5"]) + "\n"


def test_work_is_counted_of_all_kinds_on_the_processors_that_we_may_use(monkeypatch):
    monkeypatch.setattr("mocokit.machine.os.sysconf", lambda name: 100)
    lines = ["cpu  9 9 9 9 9 9 9 9 9 9", "cpu0 1 2 4 1000 1000 8 16 32 64 64", "cpu1 100 0 0 0 0 0 0 0 0 0"]
    text = "\n".join([*lines, "cpu10 500 0 0 0 0 0 0 0 0 0"])
    assert _busy_seconds(text, {0}) == 0.63
    assert _busy_seconds(text, {0, 1}) == 1.63
    assert _busy_seconds(text, {10}) == 5


@pytest.mark.parametrize(
    ("most", "cpus", "own", "others", "expected"),
    [
        (2, 2, 2.0, 0.0, 2),
        (2, 2, 1.3, 0.7, 1),  # one busy thread beside our two
        (2, 2, 1.7, 0.3, 2),  # little work
        (2, 2, 1.0, 1.0, 1),  # and where we have given way to it
        (2, 2, 0.1, 1.9, 1),  # never none
        (4, 16, 4.0, 9.0, 4),  # a container's quota of a large machine
        (16, 16, 14.0, 2.0, 14),
    ],
)
def test_threads_are_those_that_others_leave(tmp_path, monkeypatch, most, cpus, own, others, expected):
    clock = {"now": 0.0, "own": 0.0, "busy": 0.0}
    file = tmp_path / "stat"
    monkeypatch.setattr("mocokit.machine.STATISTICS", file)
    monkeypatch.setattr("mocokit.machine.os.sysconf", lambda name: 100)
    monkeypatch.setattr("mocokit.machine.os.sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    monkeypatch.setattr("mocokit.machine.usable_cores", lambda: most)
    monkeypatch.setattr("mocokit.machine.time.perf_counter", lambda: clock["now"])
    monkeypatch.setattr("mocokit.machine.time.process_time", lambda: clock["own"])
    before = torch.get_num_threads()

    def pass_time(seconds, own=own, others=others):
        clock["now"] += seconds
        clock["own"] += seconds * own
        clock["busy"] += seconds * (own + others)
        each, rest = divmod(int(100 * clock["busy"] + 0.5), cpus)
        file.write_text(statistics(*([each] * (cpus - 1)), each + rest))

    try:
        torch.set_num_threads(64)
        pass_time(100.0, own=0, others=0)
        cores = SharedCores()
        cores.begin(None)
        pass_time(0.4)
        with cores.shared():
            assert torch.get_num_threads() == most  # looked at twice a second
            pass_time(0.2)
            cores.adapt()
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == most
        with cores.shared():
            with cores.shared():
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == expected  # still inside the first one
            pass_time(0.6, others=0)
            cores.adapt()
            assert torch.get_num_threads() == most  # others have ended

        pass_time(11.0)
        cores.begin(None)
        with cores.shared():
            assert torch.get_num_threads() == most  # what was long ago says nothing of now

        cores.begin(most + 1)  # the user's word
        pass_time(5.0)
        with cores.shared():
            assert torch.get_num_threads() == most + 1

        file.unlink()  # another system
        torch.set_num_threads(most)
        cores.begin(None)
        clock["now"] += 5
        with cores.shared():
            assert torch.get_num_threads() == most
    finally:
        torch.set_num_threads(before)


def test_the_processor_has_a_name():
    assert cpu_name()
