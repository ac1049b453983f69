"""The run directory: where each file of a run lies."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocokit.errors import UserError
from mocokit.files import write_json
from mocokit.resolved import Resolved, parse


@dataclass(frozen=True)
class RunDirectory:
    """Paths below ``path``; nothing is created until something is written."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration; a directory without it is no run."""
        return self.path / "config.yaml"

    @property
    def finetuning(self) -> Path:
        """The options of a fine-tuning, whose directory has the files of a run's but this configuration."""
        return self.path / "finetune.yaml"

    @property
    def checkpoint(self) -> Path:
        """Everything that resuming needs."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def encoder(self) -> Path:
        """The pretrained backbone with its preprocessing."""
        return self.path / "encoder.safetensors"

    @property
    def metrics(self) -> Path:
        """One row a logged step."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def skipped(self) -> Path:
        """Images that could not be used, and why."""
        return self.path / "skipped.csv"

    @property
    def data(self) -> Path:
        """What the run learns from, by content: fingerprint and number of images; a fine-tuning's first weights."""
        return self.path / "data.json"

    def result(self, verb: str) -> Path:
        """The result of one verb."""
        return self.path / "results" / f"{verb}.json"

    def is_empty(self) -> bool:
        """Whether there is no run yet: nothing, or only what is written before the configuration.

        Raises:
            OSError: the path is no directory, or can't be read.
        """
        before = (self.skipped.name, self.data.name)
        return not self.path.exists() or all(
            entry.name in before or entry.name.endswith(".tmp") for entry in self.path.iterdir()
        )

    def read_config(self) -> Resolved:
        """The configuration of an existing run.

        Raises:
            UserError: this is not a run directory, or its configuration is damaged.
        """
        try:
            text = self.config.read_text(encoding="utf-8")
        except OSError:
            raise UserError(f"{self.path}: not a run directory (it has no readable config.yaml)") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.config}: not a text file") from None
        return parse(text, str(self.config))

    def read_fingerprint(self, of: str = "fingerprint") -> str | None:
        """Fingerprint of the data the run learns from (or of its first ``weights``); None if its file is damaged."""
        try:
            return str(json.loads(self.data.read_text(encoding="utf-8"))[of])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read_result(self, verb: str) -> dict[str, Any] | None:
        """What a verb has written, or None if it has not or the file is damaged."""
        try:
            value = json.loads(self.result(verb).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, a full disk or a folder that may not be written is the user's to mend: a `UserError`."""
        try:
            yield
        except OSError as error:
            where, why = error.filename or self.path, error.strerror or error
            raise UserError(
                f"{where}: {why}; what was written before is kept; make room or fix the folder's permissions "
                f"and run the same command again"
            ) from error

    def write_result(self, verb: str, value: dict[str, Any]) -> None:
        """Write the result of a verb, whole."""
        write_json(self.result(verb), value)


def run_name(data_name: str, recipe: str) -> str:
    """Directory name of a run below ``runs/``."""
    return data_name if recipe == "auto" else f"{data_name}-{recipe.removesuffix('.yaml').split('/')[-1]}"
