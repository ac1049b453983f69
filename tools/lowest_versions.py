"""Print constraints that pin each dependency to the lowest version that pyproject.toml allows.

python tools/lowest_versions.py > lowest.txt && pip install -c lowest.txt '.[dev]'
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9.]+)(?:\s*;.*)?")


def lowest_versions(text: str) -> list[str]:
    """``name==version`` for each lower bound in the text of a pyproject.toml, sorted."""
    project = tomllib.loads(text)["project"]
    extras = project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    bounds = filter(None, map(REQUIREMENT.fullmatch, requirements))
    return sorted(f"{name}=={version}" for name, version in (bound.groups() for bound in bounds))


if __name__ == "__main__":
    print("\n".join(lowest_versions(PROJECT.read_text(encoding="utf-8"))))
