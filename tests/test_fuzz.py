"""Whatever is in a file that mocokit reads back, the end is a result or one line; tools/fuzz.py looks longer."""

import shutil

import pytest
from tools import fuzz


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_damaged_file_is_taken_or_refused_in_one_line(kind, tiny_run, tmp_path, capfd):
    run = shutil.copytree(tiny_run.path, tmp_path / "run")  # which keeps results
    ended = fuzz.campaign(kind, run, examples=60, number=0)
    assert sum(ended.values()) >= 60
    assert ended["taken"]
    assert ended["refused"] or kind in ("config", "result", "cache")  # refused inside, or made again
