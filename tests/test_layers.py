"""Imports point one way: a module imports only from its own layer or those before it."""

import ast
from pathlib import Path

import pytest

import mocokit

LAYERS = [
    {"errors", "seeding"},
    {"files", "console", "memory", "cores"},
    {"options"},
    {"config"},
    {"resolve"},
    {"rundir"},
    {"distributed"},
    {"data"},
    {"model"},
    {"training"},
    {"evaluation"},
    {"deploy"},
    {"commands"},
    {"cli", "estimator", "preview"},
    {"__main__", "__init__"},
]
ROOT = Path(mocokit.__file__).parent
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TORCH_FREE = ("errors", "seeding", "files", "console", "options", "config", "resolve", "rundir", "cli")


def imports(path: Path) -> set[str]:
    """Dotted names of what a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "recipes":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mocokit" and len(parts) > 1:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{path.name} imports {name}"
        if own in TORCH_FREE:
            assert parts[0] not in ("torch", "torchvision", "timm", "pytorch_lightning"), (
                f"{path.name}: {name}"
            )


def test_nothing_but_training_knows_lightning():
    users = {p.relative_to(ROOT).parts[0] for p in MODULES if any("lightning" in n for n in imports(p))}
    assert users == {"training"}
