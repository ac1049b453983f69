"""What an option is: the field of a configuration class. Flags, YAML, checks, help and signatures derive from it.

Nothing here imports torch.
"""

import dataclasses
import difflib
import inspect
import math
import numbers
import os
import re
import textwrap
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from mocokit.errors import UserError, reason_of

NO_DEFAULT = inspect.Parameter.empty
Decides = Literal["reading", "subset", "labels", "held out"]
DECISIONS: tuple[Decides, ...] = get_args(Decides)


@dataclass(frozen=True)
class Option:
    """What a configuration class says of a field beside its type: ``Annotated[int, Option("help", low=1)]``.

    A `typing.Literal` as type lists the choices.
    """

    help: str
    group: str = ""  # that help and documentation list it in; first come those that people reach for, which have none
    low: float | None = None
    high: float | None = None
    identity: bool = True  # False: changes where or how a run is carried out, not its result; may differ on resuming
    short: str | None = None  # a short flag, such as -o
    positional: bool = False  # an argument on the command line, not a flag
    path: bool = False  # names a file or folder, maybe below ~
    # What of the images it decides: which are read, which subset of them there is, their labels and splits, or which
    # are held out for testing.
    decides: Decides | None = None
    # What `fields_of` adds:
    name: str = ""
    type: Any = str
    kind: Any = str  # of a single value: int, float, bool or str; tuple for several strings
    choices: tuple[str, ...] = ()
    default: Any = NO_DEFAULT
    required: bool = False  # else a missing default means that mocokit derives the value

    @property
    def has_default(self) -> bool:
        """Whether the value is known if nobody sets it."""
        return self.default is not NO_DEFAULT


Fields = Mapping[str, Option]


def fields_of(config: type) -> dict[str, Option]:
    """The options of a configuration class by name."""
    derives = getattr(config, "DERIVES", False)
    options = {}
    for f in dataclasses.fields(config):
        type_, option = get_args(f.type)
        value = next((t for t in get_args(type_) if types.NoneType in get_args(type_)), type_)  # without None
        choices = get_args(value) if get_origin(value) is Literal else ()
        default = NO_DEFAULT if f.default is dataclasses.MISSING else f.default
        options[f.name] = dataclasses.replace(
            option,
            name=f.name,
            type=type_,
            kind=str if choices else get_origin(value) or value,
            choices=choices,
            default=default,
            required=default is NO_DEFAULT and (option.positional or not derives),
        )
    return options


def grouped(fields: Fields) -> dict[str, list[Option]]:
    """The options by group, those without one, "", first."""
    groups: dict[str, list[Option]] = {"": []}
    for option in fields.values():
        groups.setdefault(option.group, []).append(option)
    return groups


Function = TypeVar("Function", bound=Callable[..., Any])


def documented(config: type) -> Callable[[Function], Function]:
    """Show the options of ``config`` in the signature of a function that takes ``**options``, and in its docstring,
    where they replace the line of ``options``."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        others = [option for name, option in fields_of(config).items() if name not in signature.parameters]
        signature = signature.replace(parameters=[*own, *map(_parameter, others)])
        function.__signature__ = signature  # type: ignore[attr-defined]
        lines = "\n".join(
            textwrap.fill(f"{o.name}: {help_of(o)}.", 110, initial_indent=" " * 4, subsequent_indent=" " * 8)
            for o in others
        )
        documentation = inspect.getdoc(function) or ""
        function.__doc__ = re.sub(r"^ {4}options: .*(\n {5,}.*)*", lambda _: lines, documentation, flags=re.M)
        return function

    return decorate


def _parameter(option: Option) -> inspect.Parameter:
    derived = not option.has_default and not option.required  # if it is None
    type_, default = (option.type | None, None) if derived else (option.type, option.default)
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=type_)


def help_of(option: Option) -> str:
    """The help text with the choices and the default."""
    notes = [", ".join(option.choices)] if option.choices else []
    if option.has_default and option.default not in (None, ()):
        notes.append(f"default {str(option.default).lower()}")
    return option.help + (f" ({'; '.join(notes)})" if notes else "")


AUTO_CHOICES = {"device", "precision"}  # here "auto" may be written out; elsewhere leaving out means it


def flag(name: str) -> str:
    """The command-line spelling of an option: ``batch_size`` is ``--batch-size``."""
    return "--" + name.replace("_", "-")


LONGEST_DAYS = 60  # a longer time is a slip, which would only show after minutes of compiling


def parse_duration(text: str) -> float:
    """Seconds in ``90s``, ``6m``, ``1.5h`` or ``2d`` (a bare number is seconds), at most `LONGEST_DAYS`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(text))
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a time; write for example 90s, 6m or 2h")
    if seconds > LONGEST_DAYS * 86400:
        raise ValueError(f"{text[:20]!r} is too long; the most is {LONGEST_DAYS}d, or give --epochs or --steps")
    return seconds


def expanded(path: str) -> str:
    """``path`` with the home directory in the place of a leading ``~``, which no shell expands in ``--out=~/run``.

    Raises:
        ValueError: nobody knows the home directory.
    """
    if path != "~" and not path.startswith(("~/", f"~{os.sep}")):
        return os.path.expanduser(path)  # of another user; of nobody it stays what it is
    if not (home := home_directory()):
        raise ValueError(f"{path!r}: there is no home directory here; write the whole path, or set HOME")
    return home + path[1:]


def home_directory() -> str | None:
    """The user's, or None in a container or service whose user has neither HOME nor an entry among the users."""
    home = os.path.expanduser("~")
    return home if os.path.isabs(home) and os.environ.get("HOME") != "" else None


def validate(given: Mapping[str, Any], fields: Fields, origin: str = "") -> dict[str, Any]:
    """Check values that someone set and return them with exact types; ``auto`` and ``None`` drop out.

    Raises:
        UserError: unknown names, wrong types, values out of range, all told together.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        if not isinstance(name, str):
            problems.append("an option's name is text")
        elif name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            problems.append(f"unknown option {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        elif value is not None and not (name in AUTO_CHOICES and value == "auto"):
            try:
                values[name] = _checked(fields[name], value)
            except ValueError as error:
                problems.append(f"{flag(name)}: {error}")
    if problems:
        raise UserError((f"{origin}: " if origin else "") + "; ".join(problems))
    return values


def checked_options(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call that are set, with exact types; a `UserError` if one is wrong, or several say how long."""
    options = validate(given, fields_of(config))
    check_lengths(options)
    return options


Config = TypeVar("Config")


def config_of(config: type[Config], /, **given: Any) -> Config:
    """The checked configuration of a call. Verbs go on with it, not with their arguments, in which ``~`` may stand."""
    return config(**checked_options(config, given))


EXPECTED: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
}


def _checked(option: Option, value: Any) -> Any:
    kind = option.kind
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):  # of NumPy
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if kind is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, Collection) and not isinstance(item, str) for item in items):
            raise ValueError("expected a list of names")
        names = tuple(map(str, items))
        return tuple(map(expanded, names)) if option.path else names
    if isinstance(value, Collection) and not isinstance(value, str):  # and not shown: YAML's aliases nest without end
        raise ValueError("expected one value, got several")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # of thousands of digits, which can't be shown
        raise ValueError("is too large" if value > 0 else "is too small")
    if kind in EXPECTED:
        types_, words = EXPECTED[kind]
        if (
            not isinstance(value, types_)
            or isinstance(value, bool) != (kind is bool)
            or not -math.inf < value < math.inf
        ):
            raise ValueError(f"expected {words}, got {value!r}")
    elif not str(value):
        raise ValueError("is empty")
    elif option.name == "time_budget":
        parse_duration(value)
    value = expanded(kind(value)) if option.path else kind(value)
    if option.choices and value not in option.choices:
        raise ValueError(f"{value!r} is not one of {', '.join(option.choices)}")
    if option.low is not None and value < option.low:
        raise ValueError(f"{value} is too small; the least is {option.low:g}")
    if option.high is not None and value > option.high:
        raise ValueError(f"{value} is too large; the most is {option.high:g}")
    return value


LENGTHS = ("time_budget", "steps", "epochs")  # ways to say how long to train; one is enough


def check_lengths(given: Mapping[str, Any]) -> list[str]:
    """The options that say how long to train, if there are not several, which is a `UserError`."""
    lengths = [name for name in LENGTHS if name in given]
    if len(lengths) > 1:
        raise UserError(f"{' and '.join(map(flag, lengths))} exclude each other; give one")
    return lengths


def merge(flags: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """The options of flags and of a ``--config`` file; flags win, and a length given as a flag replaces the file's.

    A config.yaml holds several lengths that agree; of these the steps are taken, which are exact.
    """
    kept = check_lengths(flags) or [name for name in ("steps", "epochs", "time_budget") if name in file][:1]
    below = {name: value for name, value in file.items() if name not in LENGTHS or name in kept}
    return below | dict(flags)


RECORDS = ("versions", "reasons", "extends")  # what config.yaml holds besides options


def load_config(path: str, fields: Fields, origin: str = "", records: Sequence[str] = RECORDS) -> dict[str, Any]:
    """The options in a YAML file, checked: some, or all as in a run's config.yaml, whose ``records`` are passed over.

    Raises:
        UserError: the file, which ``origin`` names (``--config PATH`` if empty), can't be read, or options are wrong.
    """
    origin = origin or f"--config {path}"
    try:
        with open(expanded(path), encoding="utf-8") as file:
            values = parse_yaml(file.read(), origin)
    except OSError as error:
        raise UserError(f"{origin}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{origin}: not a text file") from None
    except ValueError as error:  # of the home directory
        raise UserError(f"{origin}: {error}") from None
    return validate({n: v for n, v in values.items() if n not in records}, fields, origin)


def parse_yaml(text: str, origin: str, way_out: str = "") -> dict[Any, Any]:
    """The names and values in a YAML text; a `UserError` that names ``origin`` whatever else is in it."""
    try:
        values = yaml.safe_load(text)
    except Exception as error:  # by its tags alone YAML raises ValueError, TypeError, KeyError, RecursionError
        raise UserError(f"{origin}: not valid YAML ({reason_of(error)}){way_out}") from None
    if not isinstance(values, dict):
        raise UserError(f"{origin}: {'empty; ' * (values is None)}expected lines of the form 'option: value'{way_out}")
    return values
