"""A run goes on with the same images however they are named, and on another device."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

import mocokit
from mocokit.errors import Interrupted, UserError
from mocokit.training.checkpoint import Checkpoints
from tests.tiny_runs import TINY, coloured_data

OPTIONS = TINY | {"monitor_every": 0}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, Path]:
    """Images and a run on them that was stopped after five steps. Read it only."""
    folder = tmp_path_factory.mktemp("stopped")
    data, save = coloured_data(folder / "data", train=8, test=4), Checkpoints.save_if_due

    def stop_at_five(self, trainer, last):
        self.signal = signal.SIGINT if trainer.step == 5 else self.signal
        save(self, trainer, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save_if_due", stop_at_five)
        with pytest.raises(Interrupted):
            mocokit.pretrain(str(data), out=str(folder / "run"), **OPTIONS)
    return data, folder / "run"


def steps(run: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("spelling", ["data", "./data", "data/", "up/../data", "link", "{folder}/data"])
def test_the_same_images_by_another_name(stopped, tmp_path, monkeypatch, spelling):
    data, run = stopped
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "up").mkdir()
    for name in ("data", "link"):
        (tmp_path / name).symlink_to(data)
    monkeypatch.chdir(tmp_path)
    result = mocokit.pretrain(spelling.format(folder=tmp_path), out="./run/", **OPTIONS)
    assert result["steps"] == 9
    assert steps(tmp_path / "run") == sorted({*range(2, 10, 2), 0, 3, 6, 9})


def test_other_images_in_the_same_place_are_refused(stopped, tmp_path):
    other = coloured_data(tmp_path / "data", train=7, test=4)
    with pytest.raises(UserError, match=r"a run on other images than .* has now \(of all splits\); give another --out"):
        mocokit.pretrain(str(other), out=str(stopped[1]), **OPTIONS)


@pytest.fixture
def from_gpu(stopped, tmp_path) -> Path:
    """The run as if a GPU had begun it, for which options were chosen."""
    shutil.copytree(stopped[1], tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    chosen = {"device": "cuda", "precision": "bf16", "compile": True, "cuda_graphs": True, "workers": 77}
    config["reasons"] |= dict.fromkeys(chosen, "for cuda")
    file.write_text(yaml.safe_dump(config | chosen))
    return tmp_path / "run"


def test_a_run_of_a_gpu_goes_on_on_a_cpu(stopped, from_gpu, capfd):
    given = {name: value for name, value in OPTIONS.items() if name != "workers"}
    result = mocokit.pretrain(str(stopped[0]), out=str(from_gpu), **given)
    told = (
        "goes on on cpu (was cuda): precision fp32 (was bf16), compile False (was True), cuda_graphs False (was True)"
    )
    assert f"{from_gpu}: {told}, workers " in capfd.readouterr().err
    used = ("device", "precision", "compile", "cuda_graphs")
    assert [result["config"][name] for name in used] == ["cpu", "fp32", False, False]
    assert 0 < result["config"]["workers"] < 77
    assert result["steps"] == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_does_not_change_the_device_unasked(stopped, from_gpu):
    given = {name: value for name, value in OPTIONS.items() if name not in ("workers", "device")}
    with pytest.raises(UserError, match=r"--device cuda: .* finds no such device here; use --device cpu"):
        mocokit.pretrain(str(stopped[0]), out=str(from_gpu), **given)
    with pytest.raises(UserError, match="--cuda-graphs needs --device cuda; give --no-cuda-graphs"):
        mocokit.pretrain(str(stopped[0]), out=str(from_gpu), **OPTIONS, cuda_graphs=True)


def test_images_keep_the_size_that_was_chosen_on_the_first_device(tmp_path):
    """On a GPU the side of photographs would be another; the decoded images, and so the run, have to be the same."""
    data, options = coloured_data(tmp_path / "data", train=8, test=4), OPTIONS | {"epochs": 1}
    del options["image_size"]
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mocokit.auto.defaults.LEAST_SIZE", 24)
        assert mocokit.pretrain(str(data), out=str(run), **options)["config"]["image_size"] == 24
    (run / "encoder.safetensors").unlink()
    assert mocokit.pretrain(str(data), out=str(run), **options)["config"]["image_size"] == 24
