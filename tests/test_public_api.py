"""The names of the package: listed, imported when used, and known to editors and type checkers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import write_stub

import mocokit

ROOT = Path(__file__).parent.parent


def test_public_names_are_listed_and_importable():
    assert set(dir(mocokit)) == {*mocokit.__all__, "__version__"}
    for name in dir(mocokit):
        assert getattr(mocokit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        mocokit.pretrian  # noqa: B018
    assert all(getattr(mocokit, name).__doc__ for name in mocokit.__all__)


def test_import_costs_nothing():
    program = "import sys, mocokit; dir(mocokit); print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"


def test_the_stub_is_current():
    message = "signatures have changed; run python tools/write_stub.py"
    assert write_stub.STUB.read_text(encoding="utf-8") == write_stub.stub(), message


def test_the_version_has_a_dated_section_in_the_changelog():
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert re.fullmatch(rf"{re.escape(mocokit.__version__)} \(\d{{4}}-\d\d-\d\d\)", first)


def test_a_type_checker_finds_wrong_options(tmp_path):
    pytest.importorskip("mypy")
    only_the_stub = "[mypy]\nfollow_imports = skip\n[mypy-mocokit]\nfollow_imports = silent\n"
    (tmp_path / "mypy.ini").write_text(only_the_stub)  # torch's types alone take half a minute
    (tmp_path / "use.py").write_text(
        "import mocokit\n"
        'mocokit.knn("run", "digits", k=5)\n'
        'mocokit.knn("run", "digits", k="five")\n'
        'mocokit.pretrain("digits", head="big")\n'
        'mocokit.export("run")\n'
    )
    command = [sys.executable, "-m", "mypy", "use.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert re.findall(r"use.py:(\d+): error", done.stdout) == ["3", "4", "5"], done.stdout
