"""The site: every verb's page lists every option, and the pages build without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mocokit
from mocokit.cli import verb_parser
from mocokit.config import VERBS
from mocokit.options import fields_of, flag, grouped

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("mkdocstrings", reason="needs the extra docs")
from tools import mkdocs_hooks

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_page_lists_every_option(verb):
    page = mkdocs_hooks.options(verb)
    for name, option in fields_of(VERBS[verb]).items():
        shown = name.upper() if option.positional else flag(name)
        row = next(line for line in page.splitlines() if line.startswith(f"| `{shown}`"))
        assert option.help[1:] in row
        assert all(f"`{choice}`" in row for choice in option.choices)
    flags = [word for action in verb_parser(verb)._actions for word in action.option_strings]
    assert all(f"`{word}" in page for word in flags if word not in ("-h", "--help"))


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_page_is_an_option_of_its_verb(verb):
    page = mkdocs_hooks.options(verb)
    (example,) = re.findall(r"In a YAML file: `(.*?)`;", page)
    ((name, value),) = yaml.safe_load(example).items()
    assert isinstance(value, fields_of(VERBS[verb])[name].kind)
    assert f"with `{name}` for `{flag(name)}`" in page


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_page_is_in_the_groups_of_help(verb):
    top, *others = mkdocs_hooks.options(verb).split("\n## ")
    sections = {"": top} | {part.split("\n")[0].lower(): part for part in others}
    assert list(sections) == list(grouped(fields_of(VERBS[verb])))
    for group, options in grouped(fields_of(VERBS[verb])).items():
        shown = [line for line in sections[group].splitlines() if line.startswith("| `")]
        names = [option.name.upper() if option.positional else flag(option.name) for option in options]
        assert [line[3:].split("`")[0] for line in shown][: len(names)] == names


def test_the_navigation_names_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [f"options/{verb}.md" for verb in VERBS] + [path.name for path in (ROOT / "docs").glob("*.md")]
    assert all(f": {page}\n" in navigation for page in pages)


def test_the_guide_links_to_pages_of_the_site():
    guide = mkdocs_hooks.guide()
    assert "](docs/" not in guide
    assert "](deviations.md)" in guide
    assert "](benchmarks.md#reports)" in guide
    assert "![The map of a report](report.png)" in guide
    inside = [link for link in re.findall(r"\]\(([^)]+)\)", guide) if not link.startswith(("https:", "#"))]
    assert [link for link in inside if not (ROOT / "docs" / link.partition("#")[0]).is_file()] == []
    assert "`CONTRIBUTING.md` says" in guide


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api" / "index.html").read_text()
    assert all(f'id="mocokit.{name}"' in api for name in mocokit.__all__)
    assert "fonts.googleapis" not in (tmp_path / "index.html").read_text()
