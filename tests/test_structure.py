"""The project keeps its shape: a test file for each source file, short files, and not much code in all."""

from pathlib import Path

import pytest

import mocokit

SRC = Path(mocokit.__file__).parent
TESTS = Path(__file__).parent
FILES = [path for path in sorted(SRC.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]
NAMES = [path.relative_to(SRC).as_posix() for path in FILES]
MOST_LINES, MOST_LINES_IN_ALL = 400, 9500

# To be emptied (issue 16): files that have no test file of their own name yet, and files that are too long.
UNTESTED = {
    "commands/inputs.py",
    "commands/results.py",
    "data/archives.py",
    "data/build.py",
    "data/cache.py",
    "data/image_index.py",
    "data/pixels.py",
    "data/sampler.py",
    "data/statistics.py",
    "data/workers.py",
    "distributed.py",
    "evaluation/baselines.py",
    "evaluation/evaluator.py",
    "evaluation/features.py",
    "model/encoder.py",
    "resolve.py",
    "rundir.py",
    "training/checkpoint.py",
    "training/fit.py",
    "training/monitor.py",
}
TOO_LONG: set[str] = set()


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_a_test_file_of_its_own_name(name):
    path = TESTS / name
    tested = path.with_name(f"test_{path.name}").exists()
    assert tested != (name in UNTESTED), "write its test file, or remove it from UNTESTED"


@pytest.mark.parametrize(("name", "path"), zip(NAMES, FILES, strict=True), ids=NAMES)
def test_no_file_is_long(name, path):
    assert (lines(path) > MOST_LINES) == (name in TOO_LONG), "split the file, or remove it from TOO_LONG"


def test_the_lists_name_files_that_exist():
    assert set(NAMES) >= UNTESTED | TOO_LONG


@pytest.mark.xfail(reason="issue 16 is not finished", strict=True)
def test_there_is_not_much_code():
    assert sum(map(lines, SRC.rglob("*.py"))) <= MOST_LINES_IN_ALL
