"""What README and docs say is true: their commands are accepted, and CI runs the ones that the README promises."""

import re
import shlex
from pathlib import Path

import pytest

from mocokit.cli import main, parse
from mocokit.config import VERBS
from mocokit.recipes import load_recipe
from tests.helpers import write_images
from tests.tiny_runs import FLAGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {f"docs/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


def blocks(text: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks(text) for line in block.splitlines()]
    return [line for line in lines if line.startswith("mocokit ")]


BLOCKS, COMMANDS = blocks(README), commands(README)


@pytest.mark.parametrize("command", dict.fromkeys(line for text in PAGES.values() for line in commands(text)))
def test_commands_are_accepted(command):
    arguments = parse(shlex.split(command)[1:])
    if getattr(arguments, "recipe", None):
        load_recipe(arguments.recipe)


def test_ci_runs_what_the_first_screen_says():
    ci = (ROOT / ".ci" / "run").read_text()
    first = BLOCKS[0].split("\n")
    for line in filter(None, first):
        assert line in ci, line
    verbs = [verb for part in re.findall(r"\(commands '(.*)'\)", ci) for verb in part.split("|")]
    told = {line.split()[1] for line in COMMANDS} - {"pretrain"}
    assert told == set(verbs) == set(VERBS) - {"pretrain"}  # CI runs those lines as they stand here
    develop = BLOCKS[-1]
    assert "pip install -c constraints.txt -e '.[dev]'" in develop
    assert "pip install -q -c constraints.txt -e '.[dev]'" in ci


SECTION = re.search(r"^## Labels from a file.*?```bash\n(.*?)```", README, re.DOTALL | re.MULTILINE)[1]


@pytest.mark.parametrize("line", [line.partition("#")[0].strip() for line in SECTION.splitlines()])
def test_labels_and_splits_do_what_it_says(line, tmp_path, monkeypatch, capfd):
    """On images of two classes and six patients; on two days, where days are named."""
    monkeypatch.chdir(tmp_path)
    rows = ["image,label,scan,diagnosis,patient"]
    for number in range(48):
        day, kind, name = ("monday", "friday")[number % 2], "ab"[number // 2 % 2], f"{number:02d}.png"
        folders = f"{day}/{kind}" if "monday" in line else kind
        write_images(tmp_path / "path" / "to" / "images", [f"{folders}/{name}"])
        rows.append(f"{name},{'xy'[number % 2]},{number:02d},{'uvw'[number % 3]},{number // 8}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    assert main([*shlex.split(line)[1:], "--out", "run", *FLAGS, "--epochs", "1"]) == 0
    told = {
        "--labels-columns": "labels from labels.csv: 48 rows, columns scan, diagnosis\n",
        "--split-by": "held out for testing (about a fifth of each class, in whole groups by patient, seed 0)",
        "--test-share": "(0.3 of each class, seed 0)",
        "--train": "tested on 24 images of test; 24 of train have labels",
        "--labels": "labels from labels.csv: 48 rows, columns image, label\n",
    }
    expected = next(text for option, text in told.items() if option in line.split())
    assert expected in capfd.readouterr().err


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\b[A-Z]{3,}_[A-Z]{3,}\b", README.replace("MOCOKIT_CIFAR10", "").replace("MOCOKIT_CACHE", ""))


@pytest.mark.parametrize("page", PAGES)
def test_every_file_it_names_is_there(page):
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGES[page]):
        assert ((ROOT / page).parent / name).exists(), name
