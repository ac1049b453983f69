"""Checkpoints that are written whole, only at step boundaries, and also when the user stops the run."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mocokit import distributed
from mocokit.errors import Interrupted, UserError
from mocokit.files import replacing

NEEDED = {
    "global_step",
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "pytorch-lightning_version",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WholeFileIO(TorchCheckpointIO):
    """Lightning's checkpoints, but a reader finds the old file or the new one, never a part."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a temporary file, sync it, rename it."""
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def step_of(path: Path, module: pl.LightningModule) -> int:
    """The step of a checkpoint that Lightning can resume ``module`` from.

    Only tensors and plain values are read; nothing in the file is executed.

    Raises:
        UserError: the file is damaged, or not a checkpoint of such a run.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        missing = NEEDED - checkpoint.keys()
        if missing:
            raise ValueError(f"it has no {min(missing)}")
        module.load_state_dict(checkpoint["state_dict"])
        return int(checkpoint["global_step"])
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: not a usable checkpoint ({reason[:120]}); start anew with --overwrite"
        ) from None


class Checkpoints(pl.Callback):
    """Saves every ``seconds`` seconds, at the last step, where training stops early, and when a signal asks to stop.

    ``check`` is called before: it raises where the state is not worth keeping.
    """

    def __init__(self, path: Path, seconds: float, steps: int, check: Callable[[], None]) -> None:
        self.path, self.seconds, self.steps, self.check = path, seconds, steps, check
        self.stop: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}
        self.saved = time.monotonic()

    def catch_signals(self) -> None:
        """From here on a signal ends the run at the next step boundary; a second one ends it at once."""
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._on_signal) for s in SIGNALS} | self.before

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Catch signals again: Lightning has put its own handlers in our place."""
        self.catch_signals()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop == number:  # torchrun adds a SIGTERM of its own to the user's SIGINT
            raise Interrupted(f"stopped at once by a second {signal.Signals(number).name}")
        self.stop = signal.Signals(number)

    def restore_signals(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Save where it is due; raise `Interrupted` after a signal."""
        step = trainer.global_step
        late, stop = distributed.any_rank(
            time.monotonic() - self.saved >= self.seconds, self.stop is not None
        )  # all processes save at the same step
        if late or stop or step == self.steps or trainer.should_stop:
            self._save(trainer)
        if stop and step < self.steps:
            by = self.stop.name if self.stop else "a signal to another process"
            raise Interrupted(f"stopped at step {step:,} of {self.steps:,} by {by}")

    def _save(self, trainer: pl.Trainer) -> None:
        self.check()
        try:
            trainer.save_checkpoint(self.path)
        except (OSError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            kept = "the earlier checkpoint is kept; " if self.path.exists() else ""
            raise UserError(
                f"{self.path}: can't write the checkpoint ({reason[:120]}); {kept}"
                f"make room or fix the folder's permissions and run the same command again"
            ) from None
        self.saved = time.monotonic()
