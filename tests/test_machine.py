"""Threads, memory and devices of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mocokit.errors import UserError
from mocokit.machine import keep_freed_memory, pick_device, versions
from tests.runs import tiny_data

ROOT = Path(__file__).parents[1]

PRETRAIN = """
import sys, torch, mocokit
from mocokit.machine import usable_cores
from tests.runs import TINY
torch.set_num_threads(int(sys.argv[3]))
mocokit.pretrain(sys.argv[1], out=sys.argv[2], **TINY)
print(usable_cores(), torch.get_num_threads())
"""


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


def test_versions_are_those_installed():
    assert versions()["torch"] == torch.__version__.split("+")[0]
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_importing_this_module_imports_no_torch():
    program = "import sys, mocokit.machine; print('torch' in sys.modules, 'joblib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
