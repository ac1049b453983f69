"""``mocokit cache``: what the cache directory holds, and its removal."""

import time
from typing import Any

from mocokit.commands.results import record
from mocokit.config import CacheConfig
from mocokit.console import say
from mocokit.data.cache import IMAGES, Entry, cache_directory, entries, remove, remove_leftovers
from mocokit.data.notes import count
from mocokit.errors import UserError
from mocokit.options import config_of, documented

_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


@documented(CacheConfig)
def cache(**options: Any) -> dict[str, Any]:
    """List the decoded images, and what was downloaded, in the cache directory, or remove them.

    Removed images are decoded again when a command needs them; what a command uses at the moment stays.

    Args:
        options: any field of `mocokit.config.CacheConfig`.

    Returns:
        ``path``; ``entries``, each ``{name, bytes, age_s, in_use}``, the largest first, and their ``bytes`` together;
        ``removed``, names; ``wall_s``, ``config``, ``data_fingerprint`` (None), ``versions``.

    Raises:
        UserError: the cache directory can't be written, or entries that no command uses can't be removed.
    """
    started = time.perf_counter()
    config = config_of(CacheConfig, **options)
    root = cache_directory()
    remove_leftovers(root / IMAGES)
    found, removed = entries(root), list[Entry]()
    if config.clear:
        removed = [entry for entry in found if remove(entry.path)]
        say(f"{root}: removed {_named(removed)}")
        found = [entry for entry in found if entry not in removed]
        if stuck := [entry.path for entry in found if not entry.in_use]:
            first = f"the first is {stuck[0]}; check the permissions of its folder"
            raise UserError(f"{root}: {count(len(stuck), 'entry', 'entries')} could not be removed, {first}")
    say(f"{root}: {_named(found)}")
    for entry in found:
        used = "  in use" if entry.in_use else ""
        say(f"  {_size(entry.nbytes):>10}  {_age(entry):>14}  {entry.path.name}{used}")
    listed = [{"name": e.path.name, "bytes": e.nbytes, "age_s": round(_seconds(e)), "in_use": e.in_use} for e in found]
    figures = {"path": str(root), "entries": listed, "bytes": sum(entry.nbytes for entry in found)}
    return record("cache", None, config, figures | {"removed": [entry.path.name for entry in removed]}, started)


def _named(found: list[Entry]) -> str:
    """How many and how large."""
    return f"{count(len(found), 'entry', 'entries')}, {_size(sum(e.nbytes for e in found))}"


def _size(nbytes: int) -> str:
    """In the unit that suits."""
    size, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:,.0f} bytes" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"


def _seconds(entry: Entry) -> float:
    return max(0.0, time.time() - entry.made)


def _age(entry: Entry) -> str:
    """Such as "3 days old"."""
    seconds = _seconds(entry)
    length, unit = next(((length, unit) for length, unit in _UNITS if seconds >= 2 * length), _UNITS[-1])
    return f"{seconds / length:.0f} {unit} old"
