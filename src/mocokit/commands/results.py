"""The result of a verb: its figures and what they depend on, printed by --json and kept in the run directory."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mocokit.config import FIELDS, deciding
from mocokit.console import command, say
from mocokit.files import write_json
from mocokit.machine import versions
from mocokit.options import DECISIONS, flag
from mocokit.rundir import RunDirectory

# What the options decide that a verb must be given again, to read the same images and to measure on the same.
DECIDED = {"knn": DECISIONS, "scorecard": DECISIONS, "embed": ("reading", "labels")}


def record(
    verb: str,
    run: str | None,
    config: Any,
    figures: dict[str, Any],
    started: float,
    data_fingerprint: str | None = None,
    *also: str,
    must_keep: bool = False,
) -> dict[str, Any]:
    """The result of a verb, also written to ``RUN/results/VERB.json`` (and ``also``) where ``run`` is a run directory.

    Beside ``figures``, the verb's own keys, come ``wall_s`` (since ``started``, of `time.perf_counter`), ``config`` (a
    dataclass of options), ``data_fingerprint`` and ``versions``. Where the directory can't be written, the user is
    told; a `UserError` where the run is not complete without its result (``must_keep``).
    """
    result = figures | {
        "wall_s": round(time.perf_counter() - started, 1),
        "config": asdict(config),
        "data_fingerprint": data_fingerprint,
        "versions": versions(),
    }
    if run is not None and must_keep:
        RunDirectory(Path(run)).write_result(verb, result)
    elif run is not None:
        keep(verb, run, result, *also)
    return result


def next_command(verb: str, run: str, data: str, config: Mapping[str, Any], options: str = "") -> str:
    """A command to go on with, with those of the options in ``config`` without which it would not read the images, or
    measure on others."""
    names = deciding(*DECIDED[verb])
    needed = {n: config[n] for n in names if n in config and config[n] != FIELDS[n].default}
    flags = [flag(name) if value is True else f"{flag(name)} {_word(value)}" for name, value in needed.items()]
    return command(verb, [run, data], " ".join([*flags, options]).strip())


def _word(value: Any) -> str:
    """As a shell takes it."""
    return shlex.quote(",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


def accuracy_line(name: str, figures: dict[str, Any]) -> str:
    """One row of a table of classifiers: ``top1`` with its interval, and of ``top5`` and ``balanced`` what there is."""
    low, high = figures["ci95"]
    line = f"{name:17} top-1 {figures['top1']:7.2%}  (95 %: {low:.2%} to {high:.2%})"
    others = {"top-5": figures["top5"], "balanced": figures.get("balanced")}
    return line + "".join(f"  {kind} {share:7.2%}" for kind, share in others.items() if share is not None)


def keep(verb: str, run: str, result: dict[str, Any], *also: str) -> None:
    """Write the result of a verb that only reads ``run``, if that is a directory and may be written; ``also`` are more
    names to write it under."""
    if not Path(run).is_dir():
        return
    for file in (RunDirectory(Path(run)).result(name) for name in (verb, *also)):
        try:
            write_json(file, result)
        except OSError as error:
            say(f"{file}: can't be written ({error.strerror or error}); the result is printed only, whole with --json")
            return
