"""Checkpoints that are written whole, only between steps, and also when a signal asks the run to stop."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch

from mocokit import distributed
from mocokit.errors import Interrupted, UserError, reason_of
from mocokit.files import replacing
from mocokit.model.digest import digest

DIGEST = "digest"  # beside the state: of all its tensors and values
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Used = TypeVar("Used")


class Resumable(Protocol):
    """What is saved: `mocokit.training.loop.Trainer`."""

    step: int

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def use_checkpoint(path: Path, use: Callable[[dict[str, Any]], Used], way_out: str) -> Used:
    """What ``use`` gives of the state in a checkpoint.

    Only tensors and plain values are read; nothing in the file is executed, and nothing is used unless all of it is
    what was written.

    Raises:
        UserError: the file is missing or damaged, was changed, or is not a checkpoint of such a run; ends with
            ``way_out``.
    """
    try:
        with path.open("rb") as file:  # opened here: some names look like addresses
            state = torch.load(file, map_location="cpu", weights_only=True)
        found = state.pop(DIGEST, None) if isinstance(state, dict) else None
        if found is None:
            raise ValueError("it has no digest: of another version, or no checkpoint of mocokit")
        if found != digest(state):
            raise ValueError("its digest does not fit: it is damaged or was changed")
        return use(state)
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # it may be as good as it was
            way_out = "run the same command again when it can be read"
        raise UserError(f"{path}: not a usable checkpoint ({reason_of(error)}); {way_out}") from None


class Checkpoints:
    """Saves every ``seconds`` seconds, at the end, and when a signal asks to stop.

    ``check`` is called with the step before: it raises where the state is not worth keeping.
    """

    def __init__(self, path: Path, seconds: float, check: Callable[[int], None]) -> None:
        self.path, self.seconds, self.check = path, seconds, check
        self.signal: signal.Signals | None = None
        self.stopping = False
        self.saved = time.monotonic()
        self.writing = 0.0  # seconds so far

    def restore(self, trainer: Resumable) -> None:
        """Go on from the checkpoint, if there is one; see `use_checkpoint`."""
        # The first process may still have been removing the run that is overwritten when the others got here.
        if distributed.broadcast_object(self.path.exists()):
            use_checkpoint(self.path, trainer.load_state_dict, "start anew with --overwrite")

    def save_if_due(self, trainer: Resumable, last: bool) -> None:
        """Save if it is time to, or this is the ``last`` step. All processes come to the same decision."""
        late = time.monotonic() - self.saved >= self.seconds
        late, self.stopping = distributed.any_rank(late, self.signal is not None)
        if not (late or last or self.stopping):
            return
        begun = time.monotonic()
        self.check(trainer.step)
        state = trainer.state_dict()
        try:
            if distributed.rank() == 0:
                with replacing(self.path) as temporary, temporary.open("wb") as file:
                    torch.save(state | {DIGEST: digest(state)}, file)
        except (OSError, RuntimeError) as error:
            kept = "the earlier checkpoint is kept; " if self.path.exists() else ""
            raise UserError(
                f"{self.path}: can't write the checkpoint ({reason_of(error)}); {kept}"
                f"make room or fix the folder's permissions and run the same command again"
            ) from None
        self.saved = time.monotonic()
        self.writing += self.saved - begun

    def obey_signals(self, step: int, steps: int) -> None:
        """End the run if a signal had come when it was last saved; a run that is complete ends by itself.

        Raises:
            Interrupted: a signal came.
        """
        if self.stopping and step < steps:
            by = self.signal.name if self.signal else "a signal to another process"
            raise Interrupted(f"stopped at step {step:,} of {steps:,} by {by}")

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Inside, a first signal ends the run after the current step; a second one ends it at once."""
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number:  # torchrun adds a SIGTERM of its own to the user's SIGINT
            raise Interrupted(f"stopped at once by a second {signal.Signals(number).name}")
        self.signal = signal.Signals(number)
