"""The run directory: where each file of a run lies."""

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mocokit.config import VERBS
from mocokit.console import say
from mocokit.errors import UserError
from mocokit.files import read_json, remove_temporary, write_json
from mocokit.outputs import check_no_file, writing
from mocokit.resolved import Resolved, parse

# What a run and the verbs that measure it leave in its directory without being told a place.
OWN = {
    "config.yaml", "finetune.yaml", "checkpoints", "encoder.safetensors", "initial.safetensors", "metrics.csv",
    "images.png", "tensorboard", "skipped.csv", "data.json", "results", "report.html", "report-lists", "export",
    "finetune", "from-scratch", "wandb",
}  # fmt: skip
MOMENTS = 60.0  # seconds
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system


class RunDirectory:
    """Paths below ``path``; nothing is created until something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # the resolved configuration; a directory without it is no run
        self.finetuning = path / "finetune.yaml"  # a fine-tuning's options, in place of that configuration
        self.checkpoint = path / "checkpoints" / "last.ckpt"  # everything that resuming needs
        self.encoder = path / "encoder.safetensors"
        self.initial = path / "initial.safetensors"  # the encoder that a run with --weights goes on from
        self.metrics = path / "metrics.csv"
        self.images = path / "images.png"  # some of the images as the encoder sees them
        self.tensorboard = path / "tensorboard"
        self.skipped = path / "skipped.csv"  # images that could not be used, and why
        self.data = path / "data.json"  # fingerprint and number of images, fingerprint of given weights
        self.lock, self.owner = path / ".lock", path / ".owner.json"  # while a command writes here; which one

    def result(self, verb: str) -> Path:
        """The file with the result of one verb."""
        return self.path / "results" / f"{verb}.json"

    def is_empty(self) -> bool:
        """Whether there is no run yet: nothing, or only what is written before the configuration.

        Raises:
            UserError: the path is no directory, or can't be read.
        """
        check_no_file("--out", self.path)
        before = (self.skipped, self.data, self.lock, self.owner)
        try:
            entries = list(self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise UserError(f"--out {self.path}: {error.strerror}; choose another --out") from None
        return all(entry in before or entry.suffix == ".tmp" for entry in entries)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other command writes here. The operating system ends the lock of a process that is killed.

        Raises:
            UserError: another command does; or did on another machine, from where nobody can tell that it has ended.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        lock = FileLock(self.lock)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            way_out = "wait for it, stop it, or write elsewhere"
            raise UserError(f"{self.path}: {self._describe_owner()} writes there; {way_out}") from None
        except OSError as error:  # of a folder that can't be written: nothing is, and who tries to tells why
            if error.errno in NO_LOCKS:
                say(f"{self.path}: can't be locked ({error.strerror}); start no second command on it")
            yield
            return
        try:
            self._take_over()
            try:
                yield
            finally:
                with suppress(OSError):
                    self.owner.unlink()
        finally:
            with suppress(OSError):  # Windows removes no open file
                self.lock.unlink()
            lock.release()
            for folder in made:
                with suppress(OSError):  # it holds something now
                    folder.rmdir()

    def _take_over(self) -> None:
        """Become the owner, also in the place of one that has died; the lock is held."""
        owner, here = read_json(self.owner), socket.gethostname()
        if owner and owner.get("host") != here:
            raise UserError(
                f"{self.path}: {self._describe_owner()} writes there, or was killed; if it has ended, "
                f"remove {self.owner} and run the same command again"
            )
        if owner:
            say(f"{self.path}: {self._describe_owner()} was killed; its place is taken")
        self._remove_temporary()
        with suppress(OSError):
            write_json(self.owner, {"pid": os.getpid(), "host": here})

    def _remove_temporary(self) -> None:
        """What killed commands have left. Some verbs hold no lock; what they write here takes moments."""
        unlocked = [self.path / "report.html", *map(self.result, VERBS)]
        for file in unlocked:
            remove_temporary(file, idle=MOMENTS)
        for file in {self.checkpoint, self.owner, *(self.path / name for name in OWN)}.difference(unlocked):
            remove_temporary(file)

    def _describe_owner(self) -> str:
        owner = read_json(self.owner)
        return f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another command"

    def clear(self) -> None:
        """Remove all that a training has left; last what makes the directory a run, so that a killed command goes on.

        Of a run (not of a fine-tuning) what mocokit does not write here by itself stays, such as a table of labels,
        and is told; then so does the configuration, without which the other files could be anything.

        Raises:
            UserError: a command writes into a directory inside.
        """
        for inside in self.path.glob(f"*/{self.lock.name}"):
            with RunDirectory(inside.parent).locked():
                pass
        last, is_run = (self.config, self.finetuning), self.config.exists()
        kept = []
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry in last):
            if entry in (self.lock, self.owner):
                continue
            if is_run and entry.name not in OWN and entry.suffix != ".tmp":
                kept.append(entry.name)
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif not (kept and entry in last):
                entry.unlink()
        if kept:
            say(f"{self.path}: of files that are not the run's own nothing is removed: {', '.join(sorted(kept)[:9])}")

    def read_config(self) -> Resolved:
        """The configuration; a `UserError` if this is not a run directory or it is damaged."""
        try:
            text = self.config.read_text(encoding="utf-8")
        except OSError:
            raise UserError(f"{self.path}: not a run directory (it has no readable config.yaml)") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.config}: not a text file") from None
        return parse(text, str(self.config))

    def read_image_size(self) -> int | None:
        """Side of the encoder's images in the run that is here, or None if there is none."""
        return None if self.is_empty() or not self.config.exists() else self.read_config().config.image_size

    def read_fingerprint(self, of: str = "fingerprint") -> str | None:
        """Fingerprint of the data the run learns from, or of its first ``weights``, if any; a `UserError` if lost."""
        facts = read_json(self.data)
        if facts.get("fingerprint") is None:
            raise UserError(f"{self.data}: gone or damaged; restore it, or begin anew: another --out, or --overwrite")
        return None if (found := facts.get(of)) is None else str(found)

    def read_result(self, verb: str, *needed: str) -> dict[str, Any] | None:
        """What a verb has written, or None if it has not, or the file is damaged or lacks what is ``needed``."""
        found = read_json(self.result(verb))
        return found if found and all(name in found for name in needed) else None

    def write_result(self, verb: str, value: dict[str, Any]) -> None:
        """Write the result of a verb, whole."""
        with self.writing():
            write_json(self.result(verb), value)

    def writing(self) -> AbstractContextManager[None]:
        """Inside, an error of the system is the user's to fix (`mocokit.outputs.writing`)."""
        return writing(self.path)


def run_name(data_name: str, recipe: str) -> str:
    """Directory name of a run below ``runs/``; what is not UTF-8 in the data's name becomes "_"."""
    data_name = re.sub("[\ud800-\udfff]", "_", data_name)
    return data_name if recipe == "auto" else f"{data_name}-{recipe.removesuffix('.yaml').split('/')[-1]}"


def free_name(path: Path) -> Path:
    """The first of ``path-2``, ``path-3``, ... that is not there."""
    return next(free for number in count(2) if not (free := path.with_name(f"{path.name}-{number}")).exists())
