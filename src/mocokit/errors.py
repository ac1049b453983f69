"""The two exceptions that the command line turns into exit codes; everything else is our fault (code 1)."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The user's input is wrong: one line that names the thing and the way out (exit code 2)."""


class Interrupted(Exception):
    """The user stopped the run; a checkpoint to resume from has been written (exit code 130)."""


MOST_REASON = 160  # characters


def reason_of(error: BaseException) -> str:
    """What an error of somebody else's code says, in one line: the system's words, its message, or its kind."""
    system = error.strerror if isinstance(error, OSError) else None
    return " ".join((system or str(error)).split())[:MOST_REASON] or type(error).__name__


@contextmanager
def refusing_damage(problem: str, way_out: str) -> Iterator[None]:
    """Inside, whatever a damaged or hostile file raises is a UserError of one line: problem, reason and way out."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:  # MemoryError too: a small file may say that it holds more than fits
        if isinstance(error, PermissionError) and error.filename:
            raise UserError(f"{error.filename}: {error.strerror}") from None
        raise UserError(f"{problem} ({reason_of(error)}); {way_out}") from None
