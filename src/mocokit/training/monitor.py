"""Watches a run: rows of metrics.csv, TensorBoard, weight histograms, and the quality checks in between."""

import csv
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.tensorboard import SummaryWriter

from mocokit import distributed
from mocokit.config import PretrainConfig
from mocokit.files import write_text
from mocokit.model.encoder import Encoder
from mocokit.training.histograms import histograms
from mocokit.training.module import Pretraining

COLUMNS = (
    *("step", "epoch", "loss", "loss_over_chance", "lr", "grad_norm", "images_per_second"),
    *("queue_fill", "positive", "negative"),
    *("knn_top1", "knn_top5"),
    *("rankme", "effective_dimension", "alignment", "uniformity", "retrieval"),
)
Measure = Callable[[Encoder, int], dict[str, float]]
Row = dict[str, Any]


class MetricsFile:
    """metrics.csv: rows are appended as they come; a resumed run first drops what lies after its checkpoint."""

    def __init__(self, path: Path, step: int, columns: Sequence[str]) -> None:
        """Keep the rows up to ``step``."""
        self.path, self.columns = path, columns
        kept = [row for row in read_metrics(path) if int(row["step"]) <= step] if step else []
        write_text(path, _csv(kept, columns, header=True))

    def append(self, row: Row) -> None:
        """Add one row and hand it to the operating system."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv([row], self.columns, header=False))


def read_metrics(path: Path) -> list[Row]:
    """All whole rows of a metrics file, values as text; none if there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a row
    return list(csv.DictReader(io.StringIO(whole)))


def _csv(rows: list[Row], columns: Sequence[str], header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


class Monitor(pl.Callback):
    """Takes a row every ``log_every`` steps, at the end of each epoch, and at step 0 for the initialisation.

    ``measure(encoder, step)`` is asked every ``monitor_every`` epochs and at the last step; ``announce`` gets each
    finished row. Of several processes the first one writes and measures; all take part in the means of a row.
    """

    def __init__(
        self,
        config: PretrainConfig,
        per_epoch: int,
        metrics: Path,
        tensorboard: Path,
        measure: Measure,
        announce: Callable[[Row], None],
    ) -> None:
        self.config, self.per_epoch = config, per_epoch
        self.metrics, self.tensorboard = metrics, tensorboard
        self.measure, self.announce = measure, announce

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the files at the checkpoint's step; a fresh run measures its initialisation."""
        assert isinstance(module, Pretraining)
        step = trainer.global_step
        if distributed.rank() == 0:
            self.file = MetricsFile(self.metrics, step, COLUMNS)
            self.writer = SummaryWriter(str(self.tensorboard), purge_step=step + 1 if step else None)
            if step == 0:
                self._write(module, {"step": 0, "epoch": 0} | self._measured(module, step))
        self._start_clock(step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Write a row where one is due."""
        assert isinstance(module, Pretraining)
        step = trainer.global_step
        if module.device.type == "cpu":
            module.check_finite()  # elsewhere this would wait for the device at each step
        epoch_ends = step % self.per_epoch == 0 or step == self.config.steps
        if not epoch_ends and step % self.config.log_every:
            return
        row: Row = {"step": step, "epoch": -(-step // self.per_epoch)} | module.take_window()
        if distributed.rank() > 0:
            return
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        seconds = time.perf_counter() - self.clock
        row["images_per_second"] = round(self.config.batch_size * (step - self.clock_step) / seconds, 1)
        if epoch_ends:
            row |= self._measured(module, step)
            self._histograms(module, row["epoch"])
        self._write(module, row)
        self._start_clock(step)

    def _start_clock(self, step: int) -> None:
        self.clock, self.clock_step = time.perf_counter(), step

    def _measured(self, module: Pretraining, step: int) -> dict[str, float]:
        every = self.config.monitor_every
        due = every and (step == self.config.steps or step // self.per_epoch % every == 0)
        return self.measure(Encoder(module.moco.backbone, module.spec), step) if due else {}

    def _write(self, module: Pretraining, row: Row) -> None:
        self.file.append(row)
        for name, value in row.items():
            if name not in ("step", "epoch"):
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()
        self.announce(row)

    def _histograms(self, module: Pretraining, epoch: int) -> None:
        """Every weight once an epoch, as in the seed notebook."""
        if self.config.histograms:
            weights = dict(module.moco.encoder_q.named_parameters(prefix="encoder_q"))
            for name, histogram in histograms(weights).items():
                self.writer.add_histogram_raw(name, **histogram._asdict(), global_step=epoch)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Close TensorBoard's file."""
        if hasattr(self, "writer"):
            self.writer.close()
