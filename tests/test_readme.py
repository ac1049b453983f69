"""What the README says is true: its commands are accepted, and CI runs the ones it promises."""

import re
import shlex
from pathlib import Path

import pytest

from mocokit.cli import parse
from mocokit.config import VERBS
from mocokit.recipes import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("mocokit ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command):
    arguments = parse(shlex.split(command)[1:])
    if getattr(arguments, "recipe", None):
        load_recipe(arguments.recipe)


def test_ci_runs_what_the_first_screen_says():
    ci = (ROOT / ".ci" / "run").read_text()
    first = BLOCKS[0].split("\n")
    for line in filter(None, first):
        assert line in ci, line
    verbs = re.search(r"grep -E '\^mocokit \((.*)\) '", ci)[1].split("|")
    told = {line.split()[1] for line in COMMANDS} - {"pretrain"}
    assert told == set(verbs) == set(VERBS) - {"pretrain"}  # CI runs those lines as they stand here
    develop = BLOCKS[-1]
    assert "pip install -c constraints.txt -e '.[dev]'" in develop
    assert "pip install -q -c constraints.txt -e '.[dev]'" in ci


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\b[A-Z]{3,}_[A-Z]{3,}\b", README.replace("MOCOKIT_CIFAR10", "").replace("MOCOKIT_CACHE", ""))


def test_every_file_it_names_is_there():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), name
