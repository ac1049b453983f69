"""Freed memory is used again, instead of being mapped anew."""

import subprocess
import sys

import pytest

from mocokit.memory import keep_freed_memory

PROGRAM = """
import resource
from mocokit.memory import keep_freed_memory

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
    script = f"import ctypes, sys\nif not hasattr(ctypes.CDLL(None), 'mallopt'): sys.exit(3)\n{PROGRAM}"
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
