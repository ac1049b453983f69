"""Recipes: YAML files of pretraining options, each with its paper, command, cost and result."""

from importlib import resources
from typing import Any

from mocokit.config import FIELDS
from mocokit.errors import UserError
from mocokit.options import flag, load_config

NONE_OF_ITS = ("data", "recipe", "out", "devices", "threads")  # what only the command can say


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The options that a recipe sets: ``auto`` sets none, others are YAML files (bundled, or a path).

    Raises:
        UserError: no such recipe, its file is not a flat mapping of known options, or some are `NONE_OF_ITS`.
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
    options = load_config(path, FIELDS, origin=f"--recipe {name}", records=())
    if wrong := [flag(option) for option in NONE_OF_ITS if option in options]:
        raise UserError(f"--recipe {name}: {', '.join(wrong)} can't stand in a recipe; give the file as --config")
    return options
