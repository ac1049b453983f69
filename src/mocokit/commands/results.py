"""The result of a verb: its figures and what they depend on, printed by --json and kept in the run directory."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mocokit.machine import versions
from mocokit.rundir import RunDirectory


def record(
    verb: str,
    run: str | None,
    config: Any,
    figures: dict[str, Any],
    started: float,
    data_fingerprint: str | None = None,
) -> dict[str, Any]:
    """The result of a verb, also written to ``RUN/results/VERB.json`` where ``run`` is a run directory.

    Beside ``figures``, the verb's own keys, come ``wall_s`` (since ``started``, of `time.perf_counter`), ``config`` (a
    dataclass of options), ``data_fingerprint`` and ``versions``. A `UserError` if the directory can't be written.
    """
    result = figures | {
        "wall_s": round(time.perf_counter() - started, 1),
        "config": asdict(config),
        "data_fingerprint": data_fingerprint,
        "versions": versions(),
    }
    if run is not None and Path(run).is_dir():
        RunDirectory(Path(run)).write_result(verb, result)
    return result
