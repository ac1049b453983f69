"""A run that is killed and started again ends bit-identical to one that was not."""

import csv
import itertools
import os
import signal
import subprocess
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import mocokit as package
from mocokit.cli import main
from mocokit.commands import pretrain as verb
from mocokit.errors import Interrupted
from tests.tiny_runs import FLAGS, TINY, command, mocokit, tiny_data

STEPS = 15  # three epochs of five


def pretrain(data, out, *more):
    return ["pretrain", data, "--out", out, *FLAGS, *more]


def run_here(arguments):
    """A command that nobody kills, in this process, which need not load torch first: its exit code."""
    return main([*map(str, arguments)])


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def rows(run):
    """Metrics without the speed, which no run repeats."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Data, and a run on it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    data = tiny_data(folder)
    assert run_here(pretrain(data, folder / "run")) == 0
    return data, folder / "run"


def assert_same_end(run, reference):
    ours, theirs = checkpoint(run), checkpoint(reference)
    assert ours["step"] == theirs["step"] == STEPS
    assert same(ours["task"], theirs["task"])  # weights, both encoders' statistics, queue
    assert same(ours["optimizer"], theirs["optimizer"])
    assert same(ours["scheduler"], theirs["scheduler"])
    assert rows(run) == rows(reference)
    assert same(*(load_file(r / "encoder.safetensors") for r in (run, reference)))


def kill_after(arguments, run, step, sig):
    """Start a run, send ``sig`` once its metrics have reached ``step``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.csv").exists() and any(int(r["step"]) >= step for r in rows(run) if r["step"]):
            break
        time.sleep(0.005)
    process.send_signal(sig)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize("step", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_mid_epoch(whole, tmp_path, step):
    data, reference = whole
    arguments = pretrain(data, tmp_path / "run", "--checkpoint-every=0")
    code, _ = kill_after(arguments, tmp_path / "run", step, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert 0 < checkpoint(tmp_path / "run")["step"] < STEPS
    done = mocokit(*arguments)
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", reference)


@pytest.mark.slow
def test_killed_again_and_again_before_and_after_checkpoints(whole, tmp_path):
    """Checkpoints at first and then none, so rows written after them must go and come again."""
    data, reference = whole
    run = tmp_path / "run"
    often, never = (pretrain(data, run, f"--checkpoint-every={seconds}") for seconds in (0, 1000))
    kill_after(often, run, 4, signal.SIGKILL)
    saved = checkpoint(run)["step"]
    kill_after(never, run, 12, signal.SIGKILL)  # what does not change the result may be given anew
    assert 0 < checkpoint(run)["step"] == saved < int(rows(run)[-1]["step"])
    assert run_here(often) == 0
    assert_same_end(tmp_path / "run", reference)
    steps = [int(row["step"]) for row in rows(tmp_path / "run")]
    assert steps == sorted(set(steps))


def test_a_streamed_run_goes_on_where_it_was_killed(tmp_path):
    files = sorted(tiny_data(tmp_path).rglob("train/**/*.png"))
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):
        table = pa.table({"image": [path.read_bytes() for path in files[shard::2]]})
        pq.write_table(table, shards / f"{shard}.parquet", row_group_size=6)
    arguments = ["--stream", "--checkpoint-every", "0", "--log-every", "1"]
    whole, killed = (pretrain(shards, tmp_path / name, *arguments) for name in ("whole", "killed"))
    assert run_here(whole) == 0
    kill_after(killed, tmp_path / "killed", 7, signal.SIGKILL)
    assert run_here(killed) == 0
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("sig", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_polite_stop_leaves_a_checkpoint_of_that_very_step(whole, tmp_path, sig):
    data, reference = whole
    arguments = pretrain(data, tmp_path / "run")
    code, stderr = kill_after(arguments, tmp_path / "run", 2, sig)
    assert code == 130, stderr
    assert "run the same command to go on" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert checkpoint(tmp_path / "run")["step"] % 5  # not at an epoch's end
    assert run_here(arguments) == 0
    assert_same_end(tmp_path / "run", reference)


def test_a_finished_run_is_not_done_again(whole, capsys):
    data, run = whole
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert run_here([*pretrain(data, run), "--json"]) == 0
    assert "finished" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_other_options_or_images_are_refused_and_overwrite_replaces(whole, tmp_path, capsys):
    data, _ = whole
    out = tmp_path / "run"
    once = ["pretrain", data, "--out", out, *FLAGS, "--epochs=1"]
    assert run_here(once) == 0
    assert run_here([*once, "--lr=0.5"]) == 2
    refused = capsys.readouterr().err
    assert "--lr 0.5 (was 0.03)" in refused
    assert "--overwrite" in refused
    other = tiny_data(tmp_path / "other", height=9, width=8)
    assert run_here(["pretrain", other, *once[2:]]) == 2
    assert "other images" in capsys.readouterr().err
    assert run_here([*once, "--batch-size=999", "--overwrite"]) == 2
    assert (out / "encoder.safetensors").exists()  # the old run goes only when the new one can start
    assert run_here([*once, "--lr=0.5", "--overwrite"]) == 0
    assert "lr: 0.5" in (out / "config.yaml").read_text()


def test_changed_images_under_the_same_name_are_refused(tmp_path, capsys):
    data, out = tiny_data(tmp_path), tmp_path / "run"
    once = ["pretrain", data, "--out", out, *FLAGS, "--epochs=1"]
    assert run_here(once) == 0
    image = next(data.rglob("*.png"))
    image.write_bytes(next(itertools.islice(data.rglob("*.png"), 7, None)).read_bytes())
    assert run_here(once) == 2
    assert "other images" in capsys.readouterr().err


def test_overwrite_never_removes_what_is_no_run(tmp_path, capsys):
    data, out = tiny_data(tmp_path), tmp_path / "photos"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert run_here(["pretrain", data, "--out", out, *FLAGS, *more]) == 2
        assert "not a run directory" in capsys.readouterr().err
    assert (out / "precious.txt").read_text() == "mine"


V3 = TINY | {
    "head": "v3-vit",
    "head_hidden": 16,
    "head_dim": 8,
    "queue_size": 0,
    "symmetric": True,
    "bn_splits": 1,
    "momentum": 0.9,
    "momentum_end": 1.0,
    "views": "v3",
    "blur_p": 1.0,
    "blur_p2": 0.1,
    "solarize_p2": 0.2,
    "warmup_steps": 4,
}
KINDS = {
    "growing views": TINY | {"image_size": 16, "view_size": 8, "view_size_end": 16},
    "mlp": TINY | {"head": "mlp"},
    "resnet": V3 | {"head": "v3-resnet", "optimizer": "lars", "lr": 1.0},
    "muon": TINY | {"optimizer": "muon", "lr": 0.004, "weight_decay": 0.02},
    "vit": V3 | {"backbone": "vit_narrow", "optimizer": "adamw", "lr": 1e-3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_go_on_where_they_stopped(kind, tmp_path, monkeypatch):
    """In the middle of warm-up and of an epoch: momentum, optimizer and prediction head as if never stopped."""
    data, options = str(tiny_data(tmp_path)), KINDS[kind]
    package.pretrain(data, out=str(tmp_path / "whole"), **options)

    def stopping(row):
        if row["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(verb, "announcer", lambda config: stopping)
        with pytest.raises(Interrupted):
            package.pretrain(data, out=str(tmp_path / "stopped"), **options)
    assert checkpoint(tmp_path / "stopped")["step"] == 2
    package.pretrain(data, out=str(tmp_path / "stopped"), **options)
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")
