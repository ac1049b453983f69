"""Rows of metrics: when they are due, one a step without gaps or doubles, and whole files."""

import csv
import errno
import importlib.util
import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric.loggers import Logger
from PIL import Image

from mocokit.config import FIELDS, PretrainConfig
from mocokit.errors import UserError
from mocokit.training import finetuning, linear_probe, pretraining
from mocokit.training import log as log_module
from mocokit.training.log import Log, MetricsFile, Status, announcer, check_tracker, read_rows, tag, tensorboard

COLUMNS = ("step", "epoch", "loss", "lr", "images_per_second", "knn_top1")


class Kept(Logger):
    """A logger that remembers."""

    name, version = "kept", ""

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs): ...


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 7))
def test_rows_are_due_every_so_many_steps_and_at_the_ends_of_epochs(per_epoch, steps, every):
    log = Log(
        lambda step: [],
        per_epoch=per_epoch,
        steps=steps,
        batch_size=4,
        every=every,
        evaluate=lambda step: {},
        announce=print,
    )
    for step in range(1, steps + 1):
        ends = step % per_epoch == 0 or step == steps
        assert log.epoch_ends(step) == ends
        assert log.due(step) == (ends or (every > 0 and step % every == 0))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_resumed_file_has_each_step_once(tmp_path_factory, stretches, draw: random.Random):
    """Killed at any row, also in the middle of one, and resumed from any earlier checkpoint."""
    path = tmp_path_factory.mktemp("log") / "metrics.csv"
    at = 0
    for stretch in stretches:
        file = MetricsFile(path, at, COLUMNS)
        for step in range(at + 1, at + stretch + 1):
            file.log_metrics({"step": step, "loss": step / 3, "unknown": 1}, step)
        with path.open("a") as torn:
            torn.write("99,0,1.5"[: draw.randint(0, 8)])
        at = draw.randint(0, at + stretch)
    MetricsFile(path, at, COLUMNS)
    assert [int(row["step"]) for row in read_rows(path)] == list(range(1, at + 1))
    with path.open(newline="") as lines:
        assert next(csv.reader(lines)) == list(COLUMNS)


DAMAGED = {
    "a word": b"step,loss\n1,high\n",
    "a step that is none": b"step,loss\nfirst,1\n",
    "more values than columns": b"step,loss\n1,2,3\n",
    "a quote that is not closed": b'step,loss\n"1,2\n3,4\n',
    "a value without end": b"step,loss\n1," + b"9" * 200_000 + b"\n",
    "a step of 5,000 digits": b"step,loss\n" + b"9" * 5000 + b",1\n",
    "no text": b"step,loss\n\xff,1\n",
    "another column": b"step,cost\n1,2\n",
    "no such rows": b"step,loss\n1,\n",
    "nothing": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_rows_are_one_line(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics.csv: not the rows that were written \(.*; restore the file") as error:
        read_rows(path, "step", "loss")
    assert "\n" not in str(error.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="not the rows that were written"):
        MetricsFile(path, 3, COLUMNS)


def test_rows_with_the_values_that_are_needed(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_rows(path) == []
    path.write_text("step,loss\n0,\n1,nan\n2,0.5\n")
    assert [row["step"] for row in read_rows(path)] == ["0", "1", "2"]
    assert [row["step"] for row in read_rows(path, "loss")] == ["1", "2"]


def test_a_run_is_logged_by_all_loggers(tmp_path):
    kept = Kept()
    announced = []
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    log = Log(
        lambda step: [MetricsFile(tmp_path / "m.csv", step, COLUMNS), *tensorboard(tmp_path / "tb", step), kept],
        per_epoch=2, steps=3, batch_size=8, evaluate=lambda step: {"knn_top1": step / 10},
        weights=lambda: {"w": torch.zeros(3)}, pictures=lambda: {"two views": picture}, announce=announced.append,
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    log.open(0)
    for step in (2, 3):
        assert log.due(step)
        evaluated = log.evaluate(step)
        log.write(log.row(step, {"loss": 1.0}, optimizer) | evaluated, histograms=bool(evaluated))
    log.close()
    rows = read_rows(tmp_path / "m.csv")
    assert [(row["step"], row["epoch"], row["loss"], row["knn_top1"]) for row in rows] == [
        ("0", "0", "", "0"),
        ("2", "1", "1", "0.2"),
        ("3", "2", "1", "0.3"),
    ]
    assert [step for step, _ in kept.rows] == [row["step"] for row in announced] == [0, 2, 3]
    assert kept.rows[1][1].keys() == {"loss", "lr", "images_per_second", "knn_top1"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"), {"histograms": 0})
    events.Reload()
    assert events.Tags()["scalars"] == ["knn/top1", "train/loss", "train/lr", "speed/images_per_second"]
    assert [event.step for event in events.Scalars("knn/top1")] == [0, 2, 3]
    assert [event.step for event in events.Histograms("w")] == [2, 3]
    (image,) = events.Images("two views")
    assert image.step == 0
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), picture)


def test_each_column_has_a_tag_of_its_own():
    columns = {*pretraining.COLUMNS, *finetuning.COLUMNS, *linear_probe.COLUMNS}
    tags = {tag(column) for column in columns}
    assert len(tags) == len(columns)
    assert all(name.count("/") == 1 and "_" not in name.partition("/")[0] for name in tags)
    assert {tag("loss"), tag("knn_low"), tag("retrieval")} == {"train/loss", "knn/low", "features/retrieval"}


def test_a_resumed_run_begins_without_evaluating(tmp_path):
    kept = Kept()
    nothing = {"evaluate": lambda step: pytest.fail("no"), "pictures": lambda: pytest.fail("no")}
    nothing["announce"] = print
    log = Log(lambda step: [kept, *tensorboard(tmp_path, step)], per_epoch=2, steps=4, batch_size=8, **nothing)
    log.open(2)
    log.close()
    assert not kept.rows


def test_a_row_without_a_chance_level_is_told_without_a_share(capfd):
    announce = announcer(lambda: PretrainConfig(**dict.fromkeys(FIELDS) | {"epochs": 4, "steps": 80}))
    row = {"step": 20, "epoch": 1, "loss": 0.5, "images_per_second": 9.0, "rankme": 3.0, "retrieval": 0.5}
    announce(row)
    announce(row | {"loss_over_chance": 0.42})
    filling, full = capfd.readouterr().err.splitlines()
    assert filling.startswith("epoch 1/4  step 20/80  loss 0.500 (queue fills)  9 images/s")
    assert "loss 0.500 (42 % of chance)" in full


def test_what_stands_beside_the_bar(monkeypatch):
    """Epoch of epochs from the first step on, figures as soon as there are any, the last kNN until the next."""
    drawn, rows, now = [], [], [100.0]
    monkeypatch.setattr(log_module.time, "perf_counter", lambda: now[0])
    bar = lambda done, total, text="": drawn.append((done, total, text))  # noqa: E731
    status = Status(bar, 10, rows.append, ends=500.0)
    status.announce({"step": 0, "epoch": 0, "knn_top1": 0.301})
    status.report(1, 35)
    status.announce({"step": 10, "loss": 3.0, "loss_over_chance": 0.424})
    now[0] = 499.0
    status.report(10, 35)
    now[0] = 600.0
    status.report(31, 40)  # the clock gave more steps
    assert drawn == [
        (1, 35, "epoch 1/4, kNN 30.1 %, 0:06:40 left"),
        (10, 35, "epoch 1/4, loss 42 % of chance, kNN 30.1 %, 0:00:01 left"),
        (31, 40, "epoch 4/4, loss 42 % of chance, kNN 30.1 %, 0:00:00 left"),
    ]
    assert [row["step"] for row in rows] == [0, 10]
    Status(bar, 10, rows.append).report(1, 35)
    assert drawn[-1] == (1, 35, "epoch 1/4")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line(name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match=rf"--logger {name} needs {name}: pip install 'mocokit\[{name}\]'"):
        check_tracker(name)


@pytest.mark.parametrize("start", ["absolute", "relative"])
def test_names_that_tensorboard_cannot_take_are_told(tmp_path, monkeypatch, capfd, start):
    """Of the folder itself, or of the one in which the command was started."""
    folder = tmp_path / "b\udce9d"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert tensorboard(folder / "tensorboard" if start == "absolute" else Path("tensorboard"), 0) == []
    assert "d/tensorboard: not written, since TensorBoard takes no name that is not UTF-8" in capfd.readouterr().err


def test_a_full_disk_that_tensorboard_meets_is_an_error_of_the_system(tmp_path, monkeypatch):
    """Its writer notices the earlier of its rows there; Lightning's logger says that such values are not supported."""
    from torch.utils.tensorboard import SummaryWriter

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    log = Log(
        lambda step: tensorboard(tmp_path, step), per_epoch=1, steps=1, batch_size=1, evaluate=dict, announce=print
    )
    log.open(1)
    with pytest.raises(OSError, match="No space left on device"):
        log.write({"step": 1, "loss": 0.5})


@pytest.mark.parametrize("name", ["memory::run", "zip::run", "a::b", "http-run"])
def test_names_that_look_like_addresses_are_folders(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    [logger] = tensorboard(Path(name) / "tensorboard", 0)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.finalize("finished")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert list((tmp_path / name / "tensorboard").glob("events.*"))
