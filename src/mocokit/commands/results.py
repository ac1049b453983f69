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

    Args:
        verb: names the file.
        run: as the user named it: a directory, an encoder file, or None.
        config: the verb's options, a dataclass.
        figures: the verb's own keys; beside them come ``wall_s``, ``config``, ``data_fingerprint`` and ``versions``.
        started: `time.perf_counter()` when the verb began.
        data_fingerprint: of the decoded images.

    Raises:
        UserError: the run directory can't be written.
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
