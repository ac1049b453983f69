"""What surrounds the code fits it: metadata, versions, licence, CI."""

import re
import tomllib
from pathlib import Path

import yaml
from tools.lowest_versions import lowest_versions

import mocokit

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_every_dependency_has_a_lower_bound_that_the_constraints_pin():
    project = tomllib.loads(PROJECT)["project"]
    pinned = dict(line.split("==") for line in lowest_versions(PROJECT))
    for requirement in project["dependencies"]:
        name = re.match(r"[A-Za-z0-9_-]+", requirement)[0]
        assert f">={pinned[name]}" in requirement


def test_versions_and_licence_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert citation["version"] == mocokit.__version__
    assert f"## {mocokit.__version__} ({citation['date-released']})" in changelog
    assert citation["license"] == tomllib.loads(PROJECT)["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_ci_runs_everything_on_every_python_that_is_promised():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    promised = re.findall(r"Python :: (3\.\d+)", PROJECT)
    assert jobs["python"]["strategy"]["matrix"]["python"] == promised
    assert {"run": ".ci/run"} in jobs["newcomer"]["steps"]


def test_the_formatter_before_each_commit_is_that_of_ci():
    hook = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]
    assert f"ruff=={hook['rev'].removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()
