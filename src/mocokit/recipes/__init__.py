"""Recipes: YAML files of pretraining options, each with its paper, command, cost and result."""

from importlib import resources
from typing import Any

from mocokit.config import FIELDS
from mocokit.errors import UserError
from mocokit.options import load_config


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The options that a recipe sets: ``auto`` sets none, others are YAML files (bundled, or a path).

    Raises:
        UserError: no such recipe, or its file is not a flat mapping of known options.
    """
    if name == "auto":
        return {}
    if name.endswith((".yaml", ".yml")):
        path = name
    elif name in recipe_names():
        path = str(resources.files(__name__) / f"{name}.yaml")
    else:
        known = ", ".join(["auto", *recipe_names()])
        raise UserError(f"--recipe {name}: no such recipe; known are {known}, or a .yaml file")
    return load_config(path, FIELDS, origin=f"--recipe {name}", records=())
