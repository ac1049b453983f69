"""What an option is: a dataclass field with its help and range; flags, YAML, checks and help derive from it.

Nothing here imports torch.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import yaml

from mocokit.errors import UserError


def option(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    identity: bool = True,
    short: str | None = None,
) -> Any:
    """A dataclass field that carries its help text, its allowed range (inclusive) or choices, its ``short`` flag.

    ``identity=False`` marks options that change where or how a run is carried out but not its result; a run
    may be resumed with other values of these.
    """
    metadata = {
        "help": help, "low": low, "high": high, "choices": choices, "identity": identity, "short": short
    }  # fmt: skip
    return field(default=default, metadata=metadata)


Fields = dict[str, "dataclasses.Field[Any]"]


def fields_of(config: type) -> Fields:
    """The options of a configuration class by name."""
    return {f.name: f for f in dataclasses.fields(config)}


AUTO_CHOICES = {"device", "precision"}  # here the word "auto" may be said; elsewhere leaving out says it


def kind_of(f: "dataclasses.Field[Any]") -> type:
    """The type of an option's values: int, float, bool, str, or tuple for several strings."""
    members: dict[Any, type] = {int: int, int | None: int, float: float, float | None: float, bool: bool}
    if f.type == tuple[str, ...]:
        return tuple
    return members.get(f.type, str)


def flag(name: str) -> str:
    """The command-line spelling of an option: ``batch_size`` is ``--batch-size``."""
    return "--" + name.replace("_", "-")


def parse_duration(text: str) -> float:
    """Seconds in ``90s``, ``6m``, ``1.5h`` or ``2d`` (a bare number is seconds)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(text))
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a time; write for example 90s, 6m or 2h")
    return seconds


def validate(given: Mapping[str, Any], fields: Fields, origin: str = "") -> dict[str, Any]:
    """Check values that someone set and return them with exact types; ``auto`` and ``None`` drop out.

    All mistakes are reported together.

    Raises:
        UserError: unknown names, wrong types, values out of range.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            problems.append(f"unknown option {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        elif value is None or (name in AUTO_CHOICES and value == "auto"):
            continue
        else:
            try:
                values[name] = _checked(fields[name], value)
            except ValueError as error:
                problems.append(f"{flag(name)}: {error}")
    if problems:
        raise UserError((f"{origin}: " if origin else "") + "; ".join(problems))
    return values


def _checked(f: "dataclasses.Field[Any]", value: Any) -> Any:
    kind = kind_of(f)
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r}")
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"expected a whole number, got {value!r}")
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"expected a number, got {value!r}")
        value = float(value)
    if kind is tuple:
        return (value,) if isinstance(value, str) else tuple(map(str, value))
    if kind is str:
        value = str(value)
        if not value:
            raise ValueError("is empty")
        if f.name == "time_budget":
            parse_duration(value)
    low, high, choices = f.metadata["low"], f.metadata["high"], f.metadata["choices"]
    if choices and value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    if low is not None and value < low:
        raise ValueError(f"{value} is too small; the least is {low:g}")
    if high is not None and value > high:
        raise ValueError(f"{value} is too large; the most is {high:g}")
    return value


LENGTHS = ("time_budget", "steps", "epochs")  # ways to say how long to train; one is enough


def merge(flags: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``--config`` below those of flags. The strongest source that says how long to train decides.

    A config.yaml holds several lengths that agree; of these the steps are taken, which are exact.

    Raises:
        UserError: flags that exclude each other.
    """
    said = [name for name in LENGTHS if name in flags]
    if len(said) > 1:
        raise UserError(f"{' and '.join(map(flag, said))} exclude each other; give one")
    kept = said or [name for name in ("steps", "epochs", "time_budget") if name in file][:1]
    below = {name: value for name, value in file.items() if name not in LENGTHS or name in kept}
    return below | dict(flags)


RECORDS = ("versions", "reasons")  # what config.yaml holds besides options


def load_config(path: str, fields: Fields) -> dict[str, Any]:
    """The options in a ``--config`` file: any of a run's, or all of them as a run's config.yaml has them.

    Raises:
        UserError: the file can't be read, or holds unknown or wrong options.
    """
    values = read_options(path, f"--config {path}")
    return validate({n: v for n, v in values.items() if n not in RECORDS}, fields, origin=f"--config {path}")


def read_options(path: str, origin: str) -> dict[str, Any]:
    """The mapping in a YAML file; ``origin`` names it in errors.

    Raises:
        UserError: the file can't be read, or is no mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f"{origin}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{origin}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{origin}: expected lines of the form 'option: value'")
    return values
