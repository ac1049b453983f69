"""What the user sees on stderr: plain lines, and progress that is drawn on a terminal and told in a log."""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mocokit.errors import UserError

LINE_SECONDS = 10.0  # between progress lines where nothing can be drawn


_muted = False


def mute() -> None:
    """Say nothing from here on: another process of the same run speaks."""
    global _muted
    _muted = True


def say(line: str) -> None:
    """One line on stderr, at once."""
    if not _muted:
        complain(line)


def complain(line: str) -> None:
    """As `say`, of any process. Where stderr has lost its reader, nothing more is told: the work goes on."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        mute()
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def result(text: str) -> None:
    """Text on stdout, if it still has a reader; a `UserError` if it can't be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still holds at its end
        if not isinstance(error, BrokenPipeError):
            raise UserError(f"the result can't be written to stdout: {error.strerror}") from None


def command(verb: str, paths: Sequence[str | Path], options: str = "") -> str:
    """A command line to paste into a shell."""
    named = [f"./{path}" if str(path).startswith("-") else str(path) for path in paths]  # not an option
    return f"{shlex.join(['mocokit', verb, *named])} {options}".rstrip()


class Report(Protocol):
    """Called with what is done and what there is to do, and maybe with a ``text`` in the place of the title."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


_bars: Any = None  # rich's that are drawn; one inside another has a line of its own


@contextmanager
def _drawn() -> Iterator[Any]:
    """The bars on the terminal, which can show only one such group at a time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    global _bars
    if _bars is not None:
        yield _bars
        return
    columns = "{task.description}", BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as _bars:
        try:
            yield _bars
        finally:
            _bars = None


@contextmanager
def progress(title: str, in_logs: bool = True) -> Iterator[Report]:
    """Yields a `Report` that draws a bar on a terminal and, ``in_logs``, prints a line now and then."""
    if sys.stderr.isatty() and not _muted:
        with _drawn() as bars:
            task = bars.add_task(title, total=None)

            def draw(done: int, total: int, text: str = "") -> None:
                bars.update(task, completed=done, total=total, description=text or title)

            try:
                yield draw
            finally:
                if len(bars.tasks) > 1:  # the last one goes with the group
                    bars.remove_task(task)
        return
    last = time.monotonic()

    def report(done: int, total: int, text: str = "") -> None:
        nonlocal last
        if in_logs and time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            say(f"{title}: {done:,} of {total:,}")

    yield report
