"""The run directory: where each file of a run lies."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mocokit.errors import UserError
from mocokit.files import write_json
from mocokit.resolved import Resolved, parse


class RunDirectory:
    """Paths below ``path``; nothing is created until something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # the resolved configuration; a directory without it is no run
        self.finetuning = path / "finetune.yaml"  # a fine-tuning's options, in place of that configuration
        self.checkpoint = path / "checkpoints" / "last.ckpt"  # everything that resuming needs
        self.encoder = path / "encoder.safetensors"
        self.metrics = path / "metrics.csv"
        self.tensorboard = path / "tensorboard"
        self.skipped = path / "skipped.csv"  # images that could not be used, and why
        self.data = path / "data.json"  # fingerprint and number of images, fingerprint of a fine-tuning's first weights

    def result(self, verb: str) -> Path:
        """The file with the result of one verb."""
        return self.path / "results" / f"{verb}.json"

    def is_empty(self) -> bool:
        """Whether there is no run yet: nothing, or only what is written before the configuration.

        Raises:
            UserError: the path is no directory, or can't be read.
        """
        before = (self.skipped, self.data)
        try:
            entries = list(self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise UserError(f"--out {self.path}: {error.strerror}; choose another --out") from None
        return all(entry in before or entry.suffix == ".tmp" for entry in entries)

    def read_config(self) -> Resolved:
        """The configuration; a `UserError` if this is not a run directory or it is damaged."""
        try:
            text = self.config.read_text(encoding="utf-8")
        except OSError:
            raise UserError(f"{self.path}: not a run directory (it has no readable config.yaml)") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.config}: not a text file") from None
        return parse(text, str(self.config))

    def read_fingerprint(self, of: str = "fingerprint") -> str | None:
        """Fingerprint of the data the run learns from (or of its first ``weights``); None if its file is damaged."""
        found = _read_dict(self.data).get(of)
        return None if found is None else str(found)

    def read_result(self, verb: str) -> dict[str, Any] | None:
        """What a verb has written, or None if it has not or the file is damaged."""
        return _read_dict(self.result(verb)) or None

    def write_result(self, verb: str, value: dict[str, Any]) -> None:
        """Write the result of a verb, whole."""
        with self.writing():
            write_json(self.result(verb), value)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, a full disk or a folder that may not be written is the user's to fix: a `UserError`."""
        try:
            yield
        except OSError as error:
            where, why = error.filename or self.path, error.strerror or error
            way_out = "make room or fix the folder's permissions and run the same command again"
            raise UserError(f"{where}: {why}; what was written before is kept; {way_out}") from error


def _read_dict(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def run_name(data_name: str, recipe: str) -> str:
    """Directory name of a run below ``runs/``."""
    return data_name if recipe == "auto" else f"{data_name}-{recipe.removesuffix('.yaml').split('/')[-1]}"
