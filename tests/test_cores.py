"""No more threads than cores, whatever torch thinks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import tiny_data

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys, torch, mocokit
from mocokit.cores import usable_cores
from tests.runs import TINY
torch.set_num_threads(int(sys.argv[3]))
mocokit.pretrain(sys.argv[1], out=sys.argv[2], **TINY)
print(usable_cores(), torch.get_num_threads())
"""


@pytest.mark.parametrize("threads", [5, 1])
def test_a_run_takes_no_more_threads_than_it_has_cores(tmp_path, threads):
    """The quota is told by joblib's own variable, since a test can't have a container's."""
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "2"}
    command = [sys.executable, "-c", PROGRAM, tiny_data(tmp_path), tmp_path / "run", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    cores, left = map(int, done.stdout.split())
    assert cores <= 2
    assert left == min(threads, cores)
