"""``mocokit finetune``: what it measures and keeps, what it refuses to replace, and that a kill changes nothing."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load, load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

import mocokit
from mocokit.cli import main
from mocokit.commands.inputs import open_inputs
from mocokit.config import FinetuneConfig
from mocokit.deploy.encoder_file import read_header, save_encoder
from mocokit.errors import UserError
from mocokit.evaluation.baselines import features_of
from mocokit.evaluation.features import extract
from mocokit.evaluation.probe import fast
from mocokit.evaluation.splits import split_labelled
from mocokit.model.encoder import Encoder
from mocokit.rundir import RunDirectory
from mocokit.training.checkpoint import Checkpoints
from mocokit.training.finetuning import attach_classifier
from mocokit.training.log import read_rows
from tests.helpers import class_folders, write_images
from tests.tiny_runs import TinyRun, coloured_data, command

SHORT = {"epochs": 3, "batch_size": 16, "device": "cpu"}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
RESULT = Path("results", "finetune.json")


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path) -> Path:
    """A copy of the finished run that may be written to."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def finished(tiny_run: TinyRun, tmp_path_factory) -> tuple[Path, dict]:
    """A run that was fine-tuned, with its baseline, and the result. Read it only."""
    path = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(tiny_run.path, path)
    return path, mocokit.finetune(str(path), str(tiny_run.data), **SHORT | {"epochs": 15, "lr": 3e-3})


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    """Metrics without the speed, which no run repeats."""
    found = read_rows(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in found]


# What it measures and keeps


def test_figures_are_those_of_the_encoder_it_keeps(finished, tiny_run: TinyRun):
    path, result = finished
    files = sorted((tiny_run.data / "test").rglob("*.png"))
    for folder, who in (("finetune", "encoder"), ("from-scratch", "random_init")):
        encoder = mocokit.load(path / folder)
        assert encoder.classes == ("class0", "class1", "class2")
        assert encoder.embed(files[:2]).shape == (2, 128)
        predicted = [encoder.classes[i] for i in encoder.classify(files).argmax(dim=1)]
        true = [file.parent.name for file in files]
        figures = result[who]
        assert figures["top1"] == pytest.approx(accuracy_score(true, predicted))
        assert figures["balanced"] == pytest.approx(balanced_accuracy_score(true, predicted))
        assert figures["confusion"] == confusion_matrix(true, predicted).tolist()
        assert figures["ci95"][0] <= figures["top1"] <= figures["ci95"][1]
        metrics = read_rows(path / folder / "metrics.csv")
        assert figures["epochs"] == len(metrics) - 1
        best = max(metrics, key=lambda row: float(row["val_top1"]))  # the first of the best
        assert figures["best_epoch"] == int(best["epoch"])
        assert figures["val_top1"] == pytest.approx(float(best["val_top1"]), rel=1e-5)
        assert figures["train_s"] >= 0


def test_result(finished, tiny_run: TinyRun):
    path, result = finished
    assert result["protocol"] == "finetune"
    assert result["encoder"]["top1"] > 0.6  # chance is one in three
    assert result["images"] == {"train": 57, "val": 15, "test": 48}  # a fifth of each class validates
    assert result["data_fingerprint"] == tiny_run.result["data_fingerprint"]
    assert result["config"]["lr"] == 3e-3
    for where in (path, path / "finetune"):
        assert json.loads((where / RESULT).read_text()) == result
    alone = json.loads((path / "from-scratch" / RESULT).read_text())
    assert (alone["protocol"], alone["random_init"]) == ("from scratch", None)
    assert alone["encoder"] == result["random_init"]


@pytest.mark.parametrize("change", [{"encoder": 3}, {"encoder": {"top1": "high"}}, {"images": None}, {"directory": 1}])
def test_a_result_of_another_structure_is_measured_again(finished, tiny_run: TinyRun, tmp_path, change):
    path, result = shutil.copytree(finished[0], tmp_path / "run"), finished[1]
    (path / "finetune" / RESULT).write_text(json.dumps(result | change))
    again = mocokit.finetune(str(path), str(tiny_run.data), **SHORT | {"epochs": 15, "lr": 3e-3})
    for who in ("encoder", "random_init"):
        assert {n: v for n, v in again[who].items() if n != "train_s"} == {
            n: v for n, v in result[who].items() if n != "train_s"
        }
    assert json.loads((path / "finetune" / RESULT).read_text()) == again


def test_the_result_is_an_encoder_for_other_verbs(finished, tiny_run: TinyRun, tmp_path):
    shutil.copytree(finished[0] / "finetune", tmp_path / "tuned")
    knn = mocokit.knn(str(tmp_path / "tuned"), str(tiny_run.data), k=5)
    expected = mocokit.knn(str(tiny_run.path / "encoder.safetensors"), str(tiny_run.data), k=5)
    assert knn["random_init"]["top1"] == expected["random_init"]["top1"]
    again = mocokit.finetune(str(tmp_path / "tuned"), str(tiny_run.data), baseline=False, **SHORT)
    assert again["directory"] == str(tmp_path / "tuned" / "finetune")


def parameters(backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(backbone.named_parameters())


@pytest.mark.parametrize("scratch", [False, True])
def test_step_zero_is_the_encoder_or_its_random_initialisation(tiny_run: TinyRun, run, scratch):
    """Without a learning rate the weights stay where they start."""
    options = SHORT | {"epochs": 1, "lr": 0.0, "baseline": False, "from_scratch": scratch}
    result = mocokit.finetune(str(run), str(tiny_run.data), **options)
    spec, about = read_header(run)
    expected = Encoder.create(spec, about["seed"]) if scratch else mocokit.load(run)
    assert result["directory"] == str(run / ("from-scratch" if scratch else "finetune"))
    kept, expected = (parameters(e.backbone) for e in (mocokit.load(result["directory"]), expected))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert result["random_init"] is None


def test_the_classifier_starts_as_the_linear_probe(tiny_run: TinyRun, run, monkeypatch):
    data = str(tiny_run.data)
    monkeypatch.setattr("mocokit.commands.finetune.starting_loss", lambda trial: math.log(3))
    result = mocokit.finetune(str(run), data, **SHORT | {"epochs": 1, "lr": 0.0, "baseline": False})
    inputs = open_inputs(FinetuneConfig(run=str(run), data=data, device="cpu"))
    labelled = split_labelled(inputs.store, 0)
    probe = fast(features_of(inputs.encoder), labelled.train, None, 3, 0)
    assert torch.equal(mocokit.load(result["directory"]).classifier.weight, probe.weight)
    val = labelled.val
    scores = probe.scores(extract(inputs.encoder, val.images, val.indices))
    first = read_rows(run / "finetune" / "metrics.csv")[0]
    expected = (scores.argmax(dim=1) == val.labels).double().mean()
    assert float(first["val_top1"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("loss", "starts_as_probe"), [(None, False), (1.2, False), (math.nan, False), (1.0, True)])
def test_a_probe_worse_than_chance_in_training_gives_way_to_small_weights(
    tiny_run: TinyRun, run, monkeypatch, capfd, loss, starts_as_probe
):
    """None: as measured. The features of an untrained network are nearly constant, so its probe's weights are huge. The
    start that is kept if nothing is better has the probe."""
    spec, about = read_header(run)
    save_encoder(Encoder.create(spec, 0), run / "encoder.safetensors", about)
    if loss is not None:
        monkeypatch.setattr("mocokit.commands.finetune.starting_loss", lambda trial: loss)
    weights = []
    for _ in range(2):
        options = SHORT | {"epochs": 1, "lr": 0.0, "baseline": False, "overwrite": True}
        mocokit.finetune(str(run), str(tiny_run.data), **options)
        task = torch.load(run / "finetune" / "checkpoints" / "last.ckpt", weights_only=True)["task"]
        weights.append(task["encoder.classifier.weight"])
        assert torch.equal(task["best.classifier.weight"], weights[-1]) is starts_as_probe
        assert mocokit.load(run / "finetune").classifier.weight.std() > 0.02
        assert ("trained from small random weights" in capfd.readouterr().err) is not starts_as_probe
    small = attach_classifier(Encoder.create(spec, 0), ("a", "b", "c"), seed=0).classifier.weight
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], small) is not starts_as_probe


def test_a_class_without_training_images(run, tmp_path):
    data = class_folders(tmp_path / "data", classes=2, train=10, test=4)
    write_images(data / "test" / "class2", ["0.png"])
    result = mocokit.finetune(str(run), str(data), **SHORT)
    assert result["encoder"]["per_class"]["class2"]["images"] == 1
    assert mocokit.load(run / "finetune").classify(data / "test" / "class2" / "0.png").isfinite().all()


def test_the_pretrained_encoder_is_left_alone(tiny_run: TinyRun, finished):
    for name in ("encoder.safetensors", "checkpoints/last.ckpt", "config.yaml"):
        assert (finished[0] / name).read_bytes() == (tiny_run.path / name).read_bytes()


def test_an_encoder_file_without_its_run(tiny_run: TinyRun, run, tmp_path):
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(run / "encoder.safetensors", tmp_path / "alone" / "mine.safetensors")
    out = tmp_path / "out"
    result = mocokit.finetune(str(alone), str(tiny_run.data), out=str(out), epochs=1, device="cpu")
    assert (result["config"]["batch_size"], result["config"]["lr"]) == (16, 0.004)  # 57 images, 128 features
    assert [p.name for p in (tmp_path / "alone").iterdir()] == ["mine.safetensors"]
    assert (out / "from-scratch" / "encoder.safetensors").exists()
    assert json.loads((out / RESULT).read_text()) == result


@pytest.mark.parametrize(
    ("backbone", "lr"), [("resnet18_narrow", 0.004), ("resnet18_cifar", 0.001), ("vit_narrow", 0.001)]
)
def test_default_learning_rate(run, tmp_path, backbone, lr):
    """Narrow networks bear more, and those with batch norm most."""
    spec, about = read_header(run)
    encoder = Encoder.create(dataclasses.replace(spec, backbone=backbone))
    save_encoder(encoder, tmp_path / "other.safetensors", about)
    data = class_folders(tmp_path / "few", classes=2, train=3, test=2)
    options = {"out": str(tmp_path / "out"), "epochs": 1, "baseline": False, "device": "cpu"}
    result = mocokit.finetune(str(tmp_path / "other.safetensors"), str(data), **options)
    assert result["config"]["lr"] == lr


# Going on, and what is not replaced


def test_a_finished_one_is_not_done_again(finished, tiny_run: TinyRun, capfd):
    path, result = finished
    before = state(path / "finetune") | state(path / "from-scratch")
    options = SHORT | {"epochs": 15, "lr": 3e-3}
    assert mocokit.finetune(str(path), str(tiny_run.data), **options) == result
    assert "is finished" in capfd.readouterr().err
    assert state(path / "finetune") | state(path / "from-scratch") == before


def test_the_baseline_is_reused(tiny_run: TinyRun, run):
    alone = mocokit.finetune(str(run), str(tiny_run.data), from_scratch=True, **SHORT)
    assert alone["protocol"] == "from scratch"
    before = state(run / "from-scratch")
    assert not (run / "finetune").exists()
    both = mocokit.finetune(str(run), str(tiny_run.data), **SHORT)
    assert both["random_init"] == alone["encoder"]
    assert state(run / "from-scratch") == before


def test_a_baseline_of_another_kind_is_refused_before_anything_is_trained(tiny_run: TinyRun, run):
    data = str(tiny_run.data)
    mocokit.finetune(str(run), data, from_scratch=True, **SHORT | {"epochs": 1})
    before = state(run)
    with pytest.raises(UserError, match=r"from-scratch holds a training with --epochs 1\. Give another --out, or"):
        mocokit.finetune(str(run), data, **SHORT)
    assert state(run) == before
    mocokit.finetune(str(run), data, **SHORT, baseline=False)
    assert mocokit.finetune(str(run), data, **SHORT | {"epochs": 1}, overwrite=True)["random_init"]


def test_another_training_is_refused_and_overwrite_replaces(tiny_run: TinyRun, run, tmp_path):
    data, options = str(tiny_run.data), SHORT | {"epochs": 1, "baseline": False}
    mocokit.finetune(str(run), data, **options)
    before = state(run / "finetune")
    with pytest.raises(UserError, match=r"with --lr 0\.004\. Give another --out, or --overwrite"):
        mocokit.finetune(str(run), data, **options, lr=0.5)
    other = coloured_data(tmp_path / "other", train=20)
    with pytest.raises(UserError, match="with other images than"):
        mocokit.finetune(str(run), str(other), **options)
    with pytest.raises(UserError, match="--from-scratch False; other weights to start from"):
        mocokit.finetune(str(run), data, **options, out=str(run / "finetune"), from_scratch=True)
    assert state(run / "finetune") == before
    (run / "finetune" / "features.npz").touch()
    mocokit.finetune(str(run), data, **options, lr=0.5, overwrite=True)
    assert not (run / "finetune" / "features.npz").exists()  # of the old encoder
    assert "lr: 0.5" in (run / "finetune" / "finetune.yaml").read_text()


def test_a_second_command_is_refused(tiny_run: TinyRun, run):
    with RunDirectory(run / "finetune").locked(), pytest.raises(UserError, match=r"process \d+ on .* writes there"):
        mocokit.finetune(str(run), str(tiny_run.data), **SHORT)


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_a_training_is_ever_replaced(tiny_run: TinyRun, run, tmp_path, overwrite):
    photos = write_images(tmp_path / "photos", ["mine.png"])
    (tmp_path / "file").touch()
    shutil.copytree(run, tmp_path / "another run")
    for out, why in (
        (photos, "holds no fine-tuning"),
        (tmp_path / "another run", "holds no fine-tuning"),
        (run, "the encoder to start from is there"),
        (tmp_path, "the encoder to start from is there"),
        (tmp_path / "file", "choose another --out"),
    ):
        before = state(tmp_path)
        with pytest.raises(UserError, match=why):
            mocokit.finetune(str(run), str(tiny_run.data), out=str(out), overwrite=overwrite, **SHORT)
        assert state(tmp_path) == before


def test_damage_is_one_line(tiny_run: TinyRun, run, capfd):
    arguments = ["finetune", str(run), str(tiny_run.data), *FLAGS, "--no-baseline"]
    assert main(arguments) == 0
    for name, content in (
        ("finetune.yaml", b"lr: [1"),
        ("finetune.yaml", b"\xff\xfe"),
        ("finetune.yaml", b"speed: 3"),
        ("data.json", b"{"),
        ("encoder.safetensors", None),
        ("checkpoints/last.ckpt", b"PK not a checkpoint"),
    ):
        file = run / "finetune" / name
        kept = file.read_bytes()
        if content is None:  # is made again from the checkpoint
            file.unlink()
            assert main(arguments) == 0
            weights, before = load_file(file), load(kept)  # their order in the file is not fixed
            assert all(torch.equal(weights[name], before[name]) for name in before)
            continue
        file.write_bytes(content)
        (run / "finetune" / RESULT).unlink(missing_ok=True)
        capfd.readouterr()
        assert main(arguments) == 2
        error = capfd.readouterr().err.splitlines()
        assert str(run / "finetune") in error[-1]
        assert not any("Traceback" in line for line in error)
        file.write_bytes(kept)


def test_interrupted_says_how_to_go_on(tiny_run: TinyRun, run, capfd, monkeypatch):
    save = Checkpoints.save_if_due

    def stop_at_five(self, trainer, last):
        self.signal = signal.SIGINT if trainer.step == 5 else self.signal
        save(self, trainer, last)

    arguments = ["finetune", str(run), str(tiny_run.data), *FLAGS]
    monkeypatch.setattr(Checkpoints, "save_if_due", stop_at_five)
    assert main(arguments) == 130
    assert (
        capfd.readouterr()
        .err.splitlines()[-1]
        .endswith(f"run the same command to go on from {run / 'finetune' / 'checkpoints' / 'last.ckpt'}")
    )
    monkeypatch.undo()
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["encoder"]["epochs"] == SHORT["epochs"]


def test_killed_and_resumed_ends_bit_identical(tiny_run: TinyRun, run, tmp_path):
    options = ["--epochs=8", "--batch-size=16", "--device=cpu", "--no-baseline", "--patience=0"]
    arguments = ["finetune", str(run), str(tiny_run.data), "--out", str(tmp_path / "killed"), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "killed" / "metrics.csv").exists() and len(rows(tmp_path / "killed")) >= 2:
            break
        time.sleep(0.005)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert 2 <= len(rows(tmp_path / "killed")) < 8
    assert main(arguments) == 0
    assert main([*arguments[:4], str(tmp_path / "whole"), *options]) == 0

    killed, whole = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("killed", "whole")
    )
    assert killed["step"] == whole["step"] == 8 * 3
    for part in ("task", "optimizer", "scheduler"):
        assert np.array_equal(leaves(killed[part]), leaves(whole[part])), part
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    kept, expected = (load_file(tmp_path / name / "encoder.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def leaves(tree) -> np.ndarray:
    """All numbers in nested containers, in order."""
    if isinstance(tree, dict):
        return np.concatenate([leaves(value) for value in tree.values()] or [np.empty(0)])
    if isinstance(tree, list | tuple):
        return np.concatenate([leaves(value) for value in tree] or [np.empty(0)])
    if isinstance(tree, torch.Tensor):
        return tree.detach().double().numpy().ravel()
    return np.array([float(tree)]) if isinstance(tree, int | float) else np.empty(0)


# Data that does not serve


def test_labels_are_needed_and_several_of_a_class(run, tmp_path):
    flat = write_images(tmp_path / "flat", [f"{i}.png" for i in range(20)])
    with pytest.raises(UserError, match="fine-tuning needs labels"):
        mocokit.finetune(str(run), str(flat), **SHORT)
    single = class_folders(tmp_path / "single", classes=3, train=1, test=2)
    with pytest.raises(UserError, match="too few labelled training images"):
        mocokit.finetune(str(run), str(single), **SHORT)
    assert not (run / "finetune").exists()


def test_fewer_images_than_a_batch(run, tmp_path):
    data = class_folders(tmp_path / "few", classes=2, train=3, test=2)
    result = mocokit.finetune(str(run), str(data), **SHORT | {"batch_size": 64})
    assert result["images"]["train"] == 4
    assert [int(row["step"]) for row in read_rows(run / "finetune" / "metrics.csv")] == [0, 1, 2, 3]


# Within a time


@pytest.fixture
def paced(monkeypatch) -> dict[str, float]:
    """The seconds that a step is said to take, and how often it was asked."""
    pace = {"step": 0.05, "asked": 0}

    def timed(task: object, seconds: float) -> float:
        assert seconds == pytest.approx(0.05 * 600)
        pace["asked"] += 1
        return pace["step"]

    monkeypatch.setattr("mocokit.commands.finetune.step_time", timed)
    return pace


def test_a_time_budget_gives_both_trainings_the_epochs_that_fit(run, tiny_run, paced):
    """Three steps an epoch; of 558 s each training has half."""
    paced["step"] = 25.0
    within = {"time_budget": "10m", "batch_size": 16, "device": "cpu"}
    result = mocokit.finetune(str(run), str(tiny_run.data), **within)
    epochs = result["config"]["epochs"]
    assert epochs == 3
    assert paced["asked"] == 1
    for place in ("finetune", "from-scratch"):
        saved = yaml.safe_load((run / place / "finetune.yaml").read_text())
        assert saved["epochs"] == epochs == len(read_rows(run / place / "metrics.csv")) - 1
    assert yaml.safe_load((run / "finetune" / "finetune.yaml").read_text())["time_budget"] == "10m"
    paced["step"] = 1e-9
    assert mocokit.finetune(str(run), str(tiny_run.data), **within) == result  # finished, whatever the pace is now
    by_hand = mocokit.finetune(str(run), str(tiny_run.data), **SHORT | {"epochs": epochs, "out": str(run / "other")})
    assert by_hand["encoder"]["confusion"] == result["encoder"]["confusion"]  # a trial leaves no trace
    assert rows(run / "other") == rows(run / "finetune")


def test_a_training_that_goes_on_keeps_the_epochs_that_fitted(run, tiny_run, paced, monkeypatch):
    paced["step"] = 50.0
    within = {"time_budget": "10m", "batch_size": 16, "device": "cpu", "from_scratch": True}
    with monkeypatch.context() as patched:
        patched.setattr("mocokit.commands.finetune.save_encoder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mocokit.finetune(str(run), str(tiny_run.data), **within)
    paced["step"] = 1e-9
    result = mocokit.finetune(str(run), str(tiny_run.data), **within)
    assert result["config"]["epochs"] == result["encoder"]["epochs"] == 3
    assert paced["asked"] == 1


def test_a_time_that_is_too_short_is_said_and_a_long_one_has_the_usual_number(run, tiny_run, paced, capfd):
    within = {"time_budget": "10m", "batch_size": 16, "device": "cpu", "from_scratch": True, "patience": 1}
    short = r": 1 epoch of .* that is more than there is time for\n(?s:.*), at most 1 epoch\n"
    for step, epochs, words in ((1e4, 1, short), (1e-9, 50, r"50 epochs of 0\.")):
        paced["step"] = step
        result = mocokit.finetune(str(run), str(tiny_run.data), **within, overwrite=True)
        assert result["config"]["epochs"] == epochs
        assert re.search(words, capfd.readouterr().err)
    with pytest.raises(UserError, match="--time-budget and --epochs exclude each other"):
        mocokit.finetune(str(run), str(tiny_run.data), time_budget="1m", epochs=3)


def test_steps_are_timed_without_a_word_to_the_network(tiny_run, run):
    """The whole way, with a clock: it ends in time."""
    begun = time.perf_counter()
    result = mocokit.finetune(str(run), str(tiny_run.data), time_budget="60s", batch_size=16, device="cpu", patience=3)
    assert time.perf_counter() - begun < 60
    assert 1 <= result["encoder"]["epochs"] <= result["config"]["epochs"] <= 50
