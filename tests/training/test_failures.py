"""When a run can't go on: the last good checkpoint stays, one clear line says why, and nothing foreign is run."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mocokit
from mocokit.cli import main
from mocokit.data import streaming
from mocokit.errors import Interrupted, UserError
from mocokit.model.digest import digest
from mocokit.training.checkpoint import DIGEST
from mocokit.training.log import MetricsFile
from mocokit.training.pretraining import Pretraining
from tests.tiny_runs import TINY, flags_of, tiny_data

OPTIONS = TINY | {"epochs": 2, "checkpoint_every": 0.0}  # ten steps, a checkpoint after each
STEPS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(tiny_data(tmp_path_factory.mktemp("failures")))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run that nothing went wrong with."""
    run = tmp_path_factory.mktemp("whole") / "run"
    mocokit.pretrain(data, out=str(run), **OPTIONS)
    return run


@pytest.fixture
def stopped(data, tmp_path, monkeypatch) -> Path:
    """A run that was interrupted after its fourth step."""
    run = tmp_path / "run"
    interrupt(monkeypatch, at=4)
    with pytest.raises(Interrupted, match="stopped at step 4 of 10 by SIGINT; run the same command to go on"):
        mocokit.pretrain(data, out=str(run), **OPTIONS)
    monkeypatch.undo()
    assert checkpoint(run)["step"] == 4
    return run


def interrupt(monkeypatch, at: int, times: int = 1) -> None:
    """Press Ctrl-C when the row of step ``at`` has been written."""
    write = MetricsFile.log_metrics

    def write_and_interrupt(self, row, step):
        write(self, row, step)
        for _ in range(times if step == at else 0):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsFile, "log_metrics", write_and_interrupt)


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def failing(data: str, run: Path, **options: object) -> str:
    """Run a pretraining that must end in a UserError; returns its line."""
    with pytest.raises(UserError) as caught:
        mocokit.pretrain(data, out=str(run), **(OPTIONS | options))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def assert_ends_as(run: Path, whole: Path) -> None:
    ours, theirs = (load_file(r / "encoder.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not list(run.rglob("*.tmp"))


# A loss that is no number --------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch, broken):
    forward = Pretraining.forward
    monkeypatch.setattr(
        Pretraining, "forward", lambda self, views: forward(self, views) * (broken if views.step == 6 else 1)
    )
    line = failing(data, tmp_path / "run")
    assert "step 7: the loss or its gradient is not finite" in line
    assert "lower --lr than 0.03" in line
    saved = checkpoint(tmp_path / "run")
    assert saved["step"] == 6
    assert all(tensor.isfinite().all() for tensor in saved["task"].values())
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_an_update_that_breaks_the_weights_reaches_no_checkpoint(data, tmp_path, monkeypatch):
    """The loss, computed before the update, is still fine then."""
    check = Pretraining.check_state

    def break_and_check(self, step):
        if step == 7:
            next(self.moco.encoder_q.parameters()).data[0] = float("inf")
        check(self, step)

    monkeypatch.setattr(Pretraining, "check_state", break_and_check)
    assert "step 7: the weights are not finite" in failing(data, tmp_path / "run")
    saved = checkpoint(tmp_path / "run")
    assert saved["step"] == 6
    assert all(tensor.isfinite().all() for tensor in saved["task"].values())


def test_features_that_are_no_numbers_stop_the_run_at_the_check(data, tmp_path, monkeypatch):
    """Also where the loss is still fine."""
    means, rows = Pretraining.means, []

    def break_before_the_check(self):
        rows.append(means(self))
        if len(rows) == 3:  # of steps 2, 4 and 5, the end of an epoch
            self.moco.backbone.bn1.running_var.fill_(float("nan"))
        return rows[-1]

    monkeypatch.setattr(Pretraining, "means", break_before_the_check)
    line = failing(data, tmp_path / "run")
    assert "step 5: the encoder's features are not finite" in line
    assert "lower --lr than 0.03" in line
    assert checkpoint(tmp_path / "run")["step"] == 4


def test_a_huge_learning_rate_is_told_in_one_line(data, tmp_path, capfd):
    arguments = ["pretrain", data, "--out", str(tmp_path / "run"), "--device=cpu", "--workers=0"]
    assert main([*arguments, "--lr=1e6", "--steps=10", "--batch-size=8"]) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert "not finite" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


# Disks and permissions -----------------------------------------------------------------------------------


def test_a_disk_that_fills_up_within_a_checkpoint(data, stopped, whole, monkeypatch):
    before = (stopped / "checkpoints" / "last.ckpt").read_bytes()

    def full(checkpoint, file):
        file.write(b"part of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    line = failing(data, stopped)
    assert "can't write the checkpoint" in line
    assert "No space left" in line
    assert "the earlier checkpoint is kept" in line
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (stopped / "checkpoints" / "last.ckpt").read_bytes() == before
    monkeypatch.undo()
    mocokit.pretrain(data, out=str(stopped), **OPTIONS)
    assert_ends_as(stopped, whole)


def test_a_disk_that_fills_up_within_the_metrics(data, stopped, whole, monkeypatch):
    def full(self, row, step):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    monkeypatch.setattr(MetricsFile, "log_metrics", full)
    line = failing(data, stopped)
    assert "metrics.csv: No space left" in line
    assert "run the same command again" in line
    monkeypatch.undo()
    mocokit.pretrain(data, out=str(stopped), **OPTIONS)
    assert_ends_as(stopped, whole)
    assert (stopped / "metrics.csv").read_text().count("\n") == (whole / "metrics.csv").read_text().count("\n")


def test_a_checkpoint_folder_that_cannot_be_written(data, stopped, monkeypatch):
    before = (stopped / "checkpoints" / "last.ckpt").read_bytes()
    monkeypatch.setattr("mocokit.files.tempfile.mkstemp", read_only("checkpoints"))
    line = failing(data, stopped)
    assert "can't write the checkpoint" in line
    assert "permissions" in line
    assert (stopped / "checkpoints" / "last.ckpt").read_bytes() == before


def read_only(folder: str):
    """A ``mkstemp`` that refuses one folder, as a read-only file system would: permissions do not bind root."""
    import tempfile

    mkstemp = tempfile.mkstemp

    def refuse(*arguments, dir, **options):
        if Path(dir).name == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return mkstemp(*arguments, dir=dir, **options)

    return refuse


def test_something_in_the_way_of_the_checkpoints(data, stopped):
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "checkpoints").write_text("in the way")
    assert "can't write the checkpoint" in failing(data, stopped)


def test_a_result_that_cannot_be_written_costs_no_training(data, stopped, whole, monkeypatch):
    monkeypatch.setattr("mocokit.files.tempfile.mkstemp", read_only("results"))
    assert "Read-only file system" in failing(data, stopped)
    assert checkpoint(stopped)["step"] == STEPS
    monkeypatch.undo()
    monkeypatch.setattr(Pretraining, "forward", lambda *_: pytest.fail("nothing is left to train"))
    mocokit.pretrain(data, out=str(stopped), **OPTIONS)
    assert_ends_as(stopped, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_limit_on_file_sizes(data, stopped, whole):
    """The real thing: the kernel refuses to write more than 2 MB to the checkpoint."""
    before = (stopped / "checkpoints" / "last.ckpt").read_bytes()
    assert len(before) > 2_000_000
    flags = flags_of(OPTIONS)
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
    program += "from mocokit.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["pretrain", data, "--out", str(stopped), "--no-histograms", *flags]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "can't write the checkpoint" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (stopped / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list(stopped.rglob("*.tmp"))
    mocokit.pretrain(data, out=str(stopped), **OPTIONS)
    assert_ends_as(stopped, whole)


# Checkpoints that are not ours ---------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello " * 1000])
def test_a_damaged_checkpoint_is_one_clear_line(data, stopped, damage, capfd):
    path = stopped / "checkpoints" / "last.ckpt"
    path.write_bytes(damage(path.read_bytes()))
    line = failing(data, stopped)
    assert f"{path}: not a usable checkpoint" in line
    assert "--overwrite" in line


def test_a_checkpoint_of_something_else(data, stopped):
    path = stopped / "checkpoints" / "last.ckpt"
    torch.save({"step": 2, "task": {"weight": torch.zeros(3)}}, path)
    assert "not a usable checkpoint" in failing(data, stopped)
    torch.save([1, 2, 3], path)
    assert "not a usable checkpoint" in failing(data, stopped)


def test_a_checkpoint_of_another_network(data, stopped):
    path = stopped / "checkpoints" / "last.ckpt"
    saved = checkpoint(stopped)
    saved["task"]["moco.queue.keys"] = torch.zeros(7, 128)
    del saved[DIGEST]
    torch.save(saved | {DIGEST: digest(saved)}, path)
    assert "not a usable checkpoint (Error(s) in loading state_dict" in failing(data, stopped)


def test_changed_weights_are_not_trained_on(data, stopped):
    path = stopped / "checkpoints" / "last.ckpt"
    saved = checkpoint(stopped)
    saved["task"] = {n: t.half() if t.is_floating_point() else t for n, t in saved["task"].items()}
    torch.save(saved, path)
    assert "its digest does not fit" in failing(data, stopped)


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_malicious_checkpoint_is_not_executed(data, stopped, tmp_path):
    sprung = tmp_path / "sprung"
    path = stopped / "checkpoints" / "last.ckpt"
    torch.save(checkpoint(stopped) | {"extra": Trap(sprung)}, path)
    assert "not a usable checkpoint" in failing(data, stopped)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap was armed


# Ctrl-C --------------------------------------------------------------------------------------------------


def test_ctrl_c_while_the_initialisation_is_measured(data, whole, tmp_path, monkeypatch):
    interrupt(monkeypatch, at=0)
    with pytest.raises(Interrupted, match="stopped at step 1 of 10"):
        mocokit.pretrain(data, out=str(tmp_path / "run"), **OPTIONS)
    monkeypatch.undo()
    mocokit.pretrain(data, out=str(tmp_path / "run"), **OPTIONS)
    assert_ends_as(tmp_path / "run", whole)


def test_a_second_ctrl_c_stops_at_once_and_the_run_goes_on_later(data, stopped, whole, monkeypatch):
    interrupt(monkeypatch, at=6, times=2)
    with pytest.raises(Interrupted, match="stopped at once by a second SIGINT"):
        mocokit.pretrain(data, out=str(stopped), **OPTIONS)
    assert checkpoint(stopped)["step"] == 5
    monkeypatch.undo()
    mocokit.pretrain(data, out=str(stopped), **OPTIONS)
    assert_ends_as(stopped, whole)


def test_signals_are_given_back(data, stopped):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    mocokit.pretrain(data, out=str(stopped), **OPTIONS)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_images_that_a_streamed_run_could_not_use_before_a_stop_are_listed(tmp_path, monkeypatch):
    """Of those outside the sample; one of an earlier epoch, so that the rest of the run does not meet it again."""
    data = tiny_data(tmp_path, height=8, width=8)
    bad = sorted(data.rglob("train/**/*.png"))[::8]
    for path in bad:
        path.write_bytes(b"no image")
    monkeypatch.setattr(streaming, "SAMPLE_IMAGES", 2)
    monkeypatch.setattr(streaming, "MOST_WINDOW", 4)
    options = OPTIONS | {"stream": True, "max_skipped": 1.0, "evaluate": False, "epochs": 1}
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, at=4)
        with pytest.raises(Interrupted):
            mocokit.pretrain(str(data), out=str(run), **options)
    assert mocokit.pretrain(str(data), out=str(run), **options)["skipped"] == len(bad)
    listed = {row.split(",")[0] for row in (run / "skipped.csv").read_text().splitlines()[1:]}
    assert listed == {str(path.relative_to(data)) for path in bad}
