"""Imports point one way: a module imports only from its own layer or those before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mocokit

LAYERS = [
    {"errors", "seeding"},
    {"files", "console"},
    {"options"},
    {"config"},
    {"machine"},
    {"recipes", "resolved"},
    {"outputs"},
    {"rundir"},
    {"auto"},
    {"distributed"},
    {"data"},
    {"model"},
    {"training"},
    {"evaluation"},
    {"deploy"},
    {"reporting"},
    {"studies"},
    {"runs"},
    {"commands"},
    {"cli", "estimator", "preview"},
    {"__main__", "__init__"},
]
ROOT = Path(mocokit.__file__).parent
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TORCH_FREE = (
    *("errors", "seeding", "files", "console", "options", "config", "recipes", "resolved", "outputs", "rundir"),
    *("auto", "cli"),
)


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
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mocokit" and len(parts) > 1:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{path.name} imports {name}"
        if own in TORCH_FREE:
            assert parts[0] not in ("torch", "torchvision", "timm", "pytorch_lightning"), f"{path.name}: {name}"


def test_nothing_but_training_knows_lightning():
    users = {p.relative_to(ROOT).parts[0] for p in MODULES if any("lightning" in n for n in imports(p))}
    assert users == {"training"}


def imported_by(program: str) -> set[str]:
    """Names of all modules that a fresh interpreter has imported after running ``program``."""
    command = [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_verbs_that_do_not_train_import_no_training():
    verbs = ("knn", "scorecard", "probe", "embed", "search", "select", "export")
    modules = imported_by("\n".join(f"import mocokit.commands.{verb}" for verb in verbs))
    assert not modules & {"mocokit.training", "pytorch_lightning", "lightning_fabric"}


def test_pretraining_starts_without_what_only_other_verbs_need():
    """torchmetrics is not mocokit's: Lightning's Fabric asks it for its version where it is installed, as in tests."""
    modules = imported_by("sys.modules['torchmetrics'] = None\nimport mocokit.commands.pretrain")
    assert not modules & {"pandas", "pyarrow.dataset", "scipy", "sklearn", "tensorboard", "matplotlib", "bokeh", "ray"}


def test_rows_are_searched_without_the_networks():
    assert not imported_by("import mocokit.commands.search") & {"timm", "torchvision", "mocokit.model.encoder"}


def test_help_imports_no_torch():
    program = """
from mocokit.cli import main
try:
    main(["knn", "--help"])
except SystemExit:
    pass
"""
    assert not imported_by(program) & {"torch", "sklearn"}
