"""Rows of metrics: when one is due, what is in it, and the loggers that it goes to."""

import csv
import importlib.util
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric.loggers import Logger, TensorBoardLogger
from torch import Tensor
from torch.optim import Optimizer

from mocokit.config import PretrainConfig
from mocokit.console import LINE_SECONDS, Report, say
from mocokit.errors import UserError, reason_of
from mocokit.files import is_utf8, write_text

Row = dict[str, Any]
# Columns by the group that TensorBoard shows them in; the others are of training.
_GROUPS = {
    "contrast": ("queue_fill", "positive", "negative"),
    "knn": ("knn_top1", "knn_low", "knn_high", "knn_top5"),
    "features": ("rankme", "effective_dimension", "alignment", "uniformity", "retrieval"),
    "validation": ("val_top1",),
    "speed": ("images_per_second",),
}


class MetricsFile(Logger):
    """A CSV file to which rows are appended whole; a resumed run first drops what lies after its checkpoint.

    Lightning's own CSVLogger deletes an earlier file when it opens, and rewrites the file for a new column: a run
    that is killed then would lose its rows.
    """

    def __init__(self, path: Path, step: int, columns: Sequence[str]) -> None:
        """Keep the rows up to ``step``."""
        self.path, self.columns = path, columns
        kept = [row for row in read_rows(path) if int(row.get("step") or 0) <= step] if step else []
        write_text(path, self._csv(kept, header=True))

    name = "metrics"
    version = ""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row and see it on the disk, where a checkpoint that follows will be."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._csv([dict(metrics)], header=False))
            file.flush()
            os.fsync(file.fileno())

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration has a file of its own."""

    def _csv(self, rows: list[Row], header: bool) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, restval="", lineterminator="\n", extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
        return buffer.getvalue()


def read_rows(path: Path, *needed: str) -> list[Row]:
    """All whole rows of a metrics file, values as text, each empty or a number; none if there is no file.

    With ``needed`` columns only the rows that have values there, of which there is at least one.

    Raises:
        UserError: the file holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a row
        rows: list[Row] = list(csv.DictReader(io.StringIO(whole), strict=True))
        for row in rows:
            for value in row.values():
                float(value or "nan")  # TypeError: of a row that is longer than the first line
            int(row.get("step") or 0)
        if needed and not (rows := [row for row in rows if all(row[name] for name in needed)]):
            raise ValueError(f"no {' and '.join(needed)} in it")
    except Exception as error:
        remedy = "restore the file, or start anew with --overwrite"
        raise UserError(f"{path}: not the rows that were written ({reason_of(error)}); {remedy}") from None
    return rows


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def tensorboard(folder: Path, step: int) -> list[Logger]:
    """TensorBoard's event files in ``folder``; what it has after ``step`` is hidden.

    Where the folder's name is not UTF-8 there are none, which is told.
    """
    # Absolute, since memory::run is the name of a folder like any other, and the logger takes it for an address.
    if not is_utf8(str(folder := folder.absolute())):
        say(f"{folder}: not written, since TensorBoard takes no name that is not UTF-8; all rows are in the CSV file")
        return []
    # Step 0 is purged, too: no rows of an earlier run in the same place show in between.
    return [TensorBoardLogger(folder, name="", version="", purge_step=step + 1 if step else 0)]


def tag(column: str) -> str:
    """TensorBoard's name of a column of metrics, in its group: ``knn/top1``, ``train/loss``."""
    group = next((group for group, columns in _GROUPS.items() if column in columns), "train")
    return f"{group}/{column.removeprefix('knn_').removeprefix('val_')}"


def check_tracker(name: str | None) -> None:
    """Raise `UserError` if the package of the experiment tracker ``name`` is missing, or Lightning's logger for it."""
    if name and not all(importlib.util.find_spec(package) for package in (name, "pytorch_lightning")):
        raise UserError(f"--logger {name} needs {name}: pip install 'mocokit[{name}]'")


def tracker(name: str, run: Path) -> Logger:
    """Lightning's logger of an experiment tracker, ``wandb`` or ``mlflow``; both are extras."""
    if name == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(name=run.name, save_dir=run)
    import mlflow
    from pytorch_lightning.loggers import MLFlowLogger

    # MLflow's own choice of a place: Lightning's, a folder of files, is refused by MLflow from version 3.17 on.
    return MLFlowLogger(experiment_name="mocokit", run_name=run.name, tracking_uri=mlflow.get_tracking_uri())


class Log:
    """Takes a row every ``every`` steps, at the end of each epoch, and of the initialisation.

    Args:
        loggers: called with the step to begin at; gives the loggers. Only the first process has any.
        per_epoch: steps of an epoch.
        steps: the last step.
        batch_size: images a step.
        every: steps between rows; 0 for those at the ends of epochs alone.
        first_row: whether a fresh run evaluates its initialisation.
        evaluate: figures of the task at a step, asked at step 0 and at the ends of epochs; maybe none.
        weights: what TensorBoard gets histograms of, at epochs that were evaluated.
        pictures: what it shows of a fresh run's images, uint8 [H, W, 3] by name.
        announce: gets every row as it is written.
    """

    def __init__(
        self,
        loggers: Callable[[int], list[Logger]],
        *,
        per_epoch: int,
        steps: int,
        batch_size: int,
        every: int = 0,
        first_row: bool = True,
        evaluate: Callable[[int], dict[str, float]],
        weights: Callable[[], Mapping[str, Tensor]] = dict,
        pictures: Callable[[], Mapping[str, np.ndarray]] = dict,
        announce: Callable[[Row], None],
    ) -> None:
        self.per_epoch, self.steps, self.batch_size = per_epoch, steps, batch_size
        self.every, self.first_row = every, first_row
        self.evaluate, self.weights, self.pictures, self.announce = evaluate, weights, pictures, announce
        self._loggers, self.loggers, self.opened = loggers, list[Logger](), False

    def open(self, step: int) -> None:
        """Begin at ``step``; in the middle of a run this does nothing."""
        if self.opened:
            return
        self.opened, self.loggers = True, self._loggers(step)
        if step == 0 and self.first_row and self.loggers:
            self.write({"step": 0, "epoch": 0} | self.evaluate(0))
            for board in (logger for logger in self.loggers if isinstance(logger, TensorBoardLogger)):
                for name, pixels in self.pictures().items():
                    board.experiment.add_image(name, pixels, 0, dataformats="HWC")
        self._clock = step, time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether ``step`` gets a row."""
        return self.epoch_ends(step) or bool(self.every and step % self.every == 0)

    def epoch_ends(self, step: int) -> bool:
        """Whether an epoch, or training, is complete after ``step``."""
        return step % self.per_epoch == 0 or step == self.steps

    def row(self, step: int, means: dict[str, float], optimizer: Optimizer) -> Row:
        """The row of ``step``: means over the steps since the last one, learning rate and speed."""
        since, clock = self._clock
        seconds = time.perf_counter() - clock
        return {
            "step": step,
            "epoch": -(-step // self.per_epoch),
            **means,
            "lr": float(optimizer.param_groups[-1]["lr"]),
            "images_per_second": round(self.batch_size * (step - since) / seconds, 1),
        }

    def write(self, row: Row, histograms: bool = False) -> None:
        """Hand a row to all loggers, and histograms of the weights to TensorBoard."""
        figures = {name: value for name, value in row.items() if name not in ("step", "epoch")}
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, value in figures.items():  # not by log_metrics, which makes a ValueError of a full disk
                    logger.experiment.add_scalar(tag(name), value, row["step"])
                for name, tensor in self.weights().items() if histograms else ():
                    logger.experiment.add_histogram(name, tensor, row["step"])
            else:
                logger.log_metrics(row if isinstance(logger, MetricsFile) else figures, row["step"])
            logger.save()
        self.announce(row)
        self._clock = row["step"], time.perf_counter()

    def close(self) -> None:
        """Close the files."""
        for logger in self.loggers:
            logger.finalize("finished")


BESIDE = {  # the bar of a training: what of a row, and how
    "loss_over_chance": "loss {:.0f} % of chance",
    "knn_top1": "kNN {:.1f} %",
    "val_top1": "validation {:.1f} %",
}


class Status:
    """Keeps the ``bar`` of a training up to date: epoch, last figures, and the time until ``ends``, if there is one.

    Args:
        bar: draws it.
        per_epoch: steps of an epoch.
        announce: is handed every row.
        ends: when the command shall end, of `time.perf_counter`.
    """

    def __init__(self, bar: Report, per_epoch: int, announce: Callable[[Row], None], ends: float | None = None) -> None:
        self._bar, self.per_epoch, self._announce, self.ends = bar, per_epoch, announce, ends
        self.last: Row = {}

    def announce(self, row: Row) -> None:
        """Take a row of metrics."""
        self.last |= row
        self._announce(row)

    def report(self, step: int, steps: int) -> None:
        """Draw the bar after ``step`` of ``steps``."""
        parts = [f"epoch {-(-step // self.per_epoch)}/{-(-steps // self.per_epoch)}"]
        parts += [words.format(100 * self.last[name]) for name, words in BESIDE.items() if name in self.last]
        if self.ends is not None:
            parts.append(f"{timedelta(seconds=max(0, round(self.ends - time.perf_counter())))} left")
        self._bar(step, steps, ", ".join(parts))


def announcer(configuration: Callable[[], PretrainConfig]) -> Callable[[Row], None]:
    """Prints every quality check, and in between a row now and then; asks for the ``configuration`` as it is then."""
    announced = 0.0

    def announce(row: Row) -> None:
        nonlocal announced
        if "rankme" not in row and time.monotonic() - announced < LINE_SECONDS:
            return
        announced, config = time.monotonic(), configuration()
        parts = [f"epoch {row['epoch']}/{config.epochs}", f"step {row['step']:,}/{config.steps:,}"]
        if "loss" in row:
            chance = f"{100 * row['loss_over_chance']:.0f} % of chance" if "loss_over_chance" in row else "queue fills"
            parts.append(f"loss {row['loss']:.3f} ({chance})")
            parts.append(f"{row['images_per_second']:.0f} images/s")
        if "knn_top1" in row:
            low, high = 100 * row["knn_low"], 100 * row["knn_high"]
            parts.append(f"kNN top-1 {100 * row['knn_top1']:.1f} % ({low:.1f} to {high:.1f})")
        elif "retrieval" in row:
            parts.append(f"two-view retrieval {100 * row['retrieval']:.1f} %, RankMe {row['rankme']:.1f}")
        say("  ".join(parts))

    return announce
