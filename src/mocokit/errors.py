"""The two exceptions that the command line turns into exit codes; everything else is our fault (code 1)."""


class UserError(Exception):
    """The user's input is wrong: one line that names the thing and the way out (exit code 2)."""


class Interrupted(Exception):
    """The user stopped the run; a checkpoint to resume from has been written (exit code 130)."""
