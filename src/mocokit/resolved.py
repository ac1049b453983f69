"""The complete configuration of a run and where each value comes from: config.yaml, and how a new command differs."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mocokit.config import FIELDS, PretrainConfig
from mocokit.errors import UserError
from mocokit.options import LENGTHS, RECORDS, flag, parse_yaml, validate


@dataclass(frozen=True)
class Extends:
    """The finished ``run`` that another one goes on from, and its last ``step``, at which the schedule starts again."""

    run: str
    step: int


@dataclass(frozen=True)
class Timetable:
    """What the schedule of a time budget was made from, on the machine as it was when the run began.

    ``ends``: when the command shall end, of `time.perf_counter`; seconds of a ``step`` by size of views, of a quality
    ``check``, and of the ``final`` figures.
    """

    ends: float
    step: Mapping[int, float]
    check: float
    final: float


@dataclass(frozen=True)
class Resolved:
    """A complete configuration and, for every value nobody set by hand, where it comes from.

    The ``timetable`` of a time budget is of the command that begins the run; it is not kept.
    """

    config: PretrainConfig
    reasons: dict[str, str]
    extends: Extends | None = None
    timetable: Timetable | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The values that the user set."""
        return {n: v for n, v in dataclasses.asdict(self.config).items() if n not in self.reasons}

    @property
    def restart(self) -> int:
        """The step at which the schedule starts again; 0 unless the run extends another."""
        return self.extends.step if self.extends else 0

    def derive(self, reason: str, **values: Any) -> "Resolved":
        """A copy with more values derived, all for the same reason."""
        config = dataclasses.replace(self.config, **values)
        return dataclasses.replace(self, config=config, reasons=self.reasons | dict.fromkeys(values, reason))


def dump(resolved: Resolved, versions: Mapping[str, str]) -> str:
    """``config.yaml``: all values flat (so that ``--config`` takes the file), versions, the reasons, and which run this
    one extends, if any."""
    parts = [dataclasses.asdict(resolved.config), {"versions": dict(versions)}, {"reasons": resolved.reasons}]
    if resolved.extends:
        parts.append({"extends": dataclasses.asdict(resolved.extends)})
    return "\n".join(yaml.safe_dump(part, sort_keys=False, width=110) for part in parts)


def parse(text: str, origin: str) -> Resolved:
    """Read what `dump` wrote.

    Raises:
        UserError: ``origin`` does not hold a complete configuration.
    """
    raw = parse_yaml(text, origin, "; restore it, or start anew with --overwrite")
    reasons = raw.get("reasons")
    if not isinstance(reasons, dict) or not all(isinstance(text, str) for pair in reasons.items() for text in pair):
        raise UserError(f"{origin}: not a mocokit configuration (it has no reasons); start anew with --overwrite")
    values = validate({n: v for n, v in raw.items() if n not in RECORDS}, FIELDS, origin=origin)
    absent = {name: option.default for name, option in FIELDS.items() if name not in raw and option.has_default}
    if missing := [name for name, option in FIELDS.items() if raw.get(name) is None and not option.has_default]:
        problem = f"of another version: it does not say {missing[0]}"
        raise UserError(f"{origin}: not a mocokit configuration ({problem}); start anew with --overwrite")
    config = PretrainConfig(**(dict.fromkeys(FIELDS) | absent | values))  # type: ignore[arg-type]
    return Resolved(config, reasons | dict.fromkeys(absent, "default"), _parse_extends(raw.get("extends"), origin))


def _parse_extends(raw: Any, origin: str) -> Extends | None:
    match raw:
        case None:
            return None
        case {"run": str(run), "step": int(step)} if step > 0:
            return Extends(run, step)
    raise UserError(
        f"{origin}: not a mocokit configuration (extends holds a run and a step); start anew with --overwrite"
    )


def differences(
    given: Mapping[str, Any], recipe: Mapping[str, Any], saved: Resolved, but: Collection[str] = ()
) -> list[str]:
    """How a new command line, and the ``recipe`` that it names, differ from those that made a run: one phrase an
    option, none if it resumes.

    What images there are is not compared here, nor how their place, or the recipe's, is written, nor options that are
    named in ``but``. On another device the
    precision may be another, if it was chosen for the first one.
    """
    config = dataclasses.asdict(saved.config)
    names = [n for n in FIELDS if FIELDS[n].identity and n not in but]
    if moves(given, saved) and "precision" in saved.reasons:
        names.remove("precision")
    if Path(given.get("recipe", "")).name == Path(config["recipe"]).name:
        names.remove("recipe")
    changed = [f"{flag(n)} {given[n]} (was {config[n]})" for n in names if n in given and given[n] != config[n]]
    same_length = LENGTHS if given.get("steps") == config["steps"] else ()  # as config.yaml says it otherwise, too
    missing = [n for n in names if n in saved.given and n not in given and n not in same_length]
    dropped = [f"no {flag(n)} (was {saved.given[n]})" for n in missing]
    by_recipe = [
        n for n, reason in saved.reasons.items() if reason.startswith("recipe ") and FIELDS[n].identity and n not in but
    ]
    now = {n: recipe.get(n) for n in by_recipe}
    edited = [f"{flag(n)} {v} by the recipe (was {config[n]})" for n, v in now.items() if v != config[n]]
    return changed + dropped + edited


def moves(given: Mapping[str, Any], saved: Resolved) -> bool:
    """Whether the user asks for another device than a run has been on."""
    return bool(given.get("device", saved.config.device) != saved.config.device)
