"""What the user sees on stderr: plain lines, and progress that is drawn on a terminal and told in a log."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

LINE_SECONDS = 10.0  # between progress lines where nothing can be drawn


_muted = False


def mute() -> None:
    """Say nothing from here on: another process of the same run speaks."""
    global _muted
    _muted = True


def say(line: str) -> None:
    """One line on stderr, at once."""
    if not _muted:
        print(line, file=sys.stderr, flush=True)


def command(verb: str, paths: Sequence[str | Path], options: str = "") -> str:
    """A command line to paste into a shell."""
    named = [f"./{path}" if str(path).startswith("-") else str(path) for path in paths]  # not an option
    return f"{shlex.join(['mocokit', verb, *named])} {options}".rstrip()


@contextmanager
def progress(title: str, in_logs: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yields ``report(done, total)``, which draws a bar on a terminal and, ``in_logs``, prints a line now and then."""
    if sys.stderr.isatty() and not _muted:
        with Progress(console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if in_logs and time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            say(f"{title}: {done:,} of {total:,}")

    yield report
