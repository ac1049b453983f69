"""The complete configuration of a run and where each value comes from: config.yaml, and how a new command differs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mocokit.config import FIELDS, PretrainConfig
from mocokit.errors import UserError
from mocokit.options import RECORDS, flag, parse_yaml, validate


@dataclass(frozen=True)
class Resolved:
    """A complete configuration and, for every value nobody set by hand, where it comes from."""

    config: PretrainConfig
    reasons: dict[str, str]

    @property
    def given(self) -> dict[str, Any]:
        """The values that the user set."""
        return {n: v for n, v in dataclasses.asdict(self.config).items() if n not in self.reasons}

    def derive(self, reason: str, **values: Any) -> "Resolved":
        """A copy with more values derived, all for the same reason."""
        config = dataclasses.replace(self.config, **values)
        return Resolved(config, self.reasons | dict.fromkeys(values, reason))


def dump(resolved: Resolved, versions: Mapping[str, str]) -> str:
    """``config.yaml``: all values flat (so that ``--config`` takes the file), versions, and the reasons."""
    parts = [dataclasses.asdict(resolved.config), {"versions": dict(versions)}, {"reasons": resolved.reasons}]
    return "\n".join(yaml.safe_dump(part, sort_keys=False, width=110) for part in parts)


def parse(text: str, origin: str) -> Resolved:
    """Read what `dump` wrote.

    Raises:
        UserError: ``origin`` does not hold a complete configuration.
    """
    raw = parse_yaml(text, origin)
    reasons = raw.get("reasons")
    if not isinstance(reasons, dict) or not all(isinstance(text, str) for pair in reasons.items() for text in pair):
        raise UserError(f"{origin}: not a mocokit configuration (it has no reasons); start anew with --overwrite")
    values = validate({n: v for n, v in raw.items() if n not in RECORDS}, FIELDS, origin=origin)
    if missing := [name for name in FIELDS if name not in raw]:
        problem = f"of another version: it does not say {missing[0]}"
        raise UserError(f"{origin}: not a mocokit configuration ({problem}); start anew with --overwrite")
    config = PretrainConfig(**(dict.fromkeys(FIELDS) | values))  # type: ignore[arg-type]
    return Resolved(config, reasons)


def differences(given: Mapping[str, Any], recipe: Mapping[str, Any], saved: Resolved) -> list[str]:
    """How a new command line, and the ``recipe`` that it names, differ from those that made a run: one phrase an
    option, none if it resumes.

    What images there are is not compared here, nor how their place, or the recipe's, is written. On another device the
    precision may be another, if it was chosen for the first one.
    """
    config = dataclasses.asdict(saved.config)
    names = [n for n in FIELDS if FIELDS[n].identity]
    if moves(given, saved) and "precision" in saved.reasons:
        names.remove("precision")
    if Path(given.get("recipe", "")).name == Path(config["recipe"]).name:
        names.remove("recipe")
    changed = [f"{flag(n)} {given[n]} (was {config[n]})" for n in names if n in given and given[n] != config[n]]
    dropped = [f"no {flag(n)} (was {saved.given[n]})" for n in names if n in saved.given and n not in given]
    by_recipe = [n for n, reason in saved.reasons.items() if reason.startswith("recipe ") and FIELDS[n].identity]
    now = {n: recipe.get(n) for n in by_recipe}
    edited = [f"{flag(n)} {v} by the recipe (was {config[n]})" for n, v in now.items() if v != config[n]]
    return changed + dropped + edited


def moves(given: Mapping[str, Any], saved: Resolved) -> bool:
    """Whether the user asks for another device than a run has been on."""
    return bool(given.get("device", saved.config.device) != saved.config.device)
