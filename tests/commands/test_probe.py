"""``mocokit probe``: figures against scikit-learn's on the same features, files of the run, few labels, odd data."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mocokit
from mocokit.cli import main
from mocokit.errors import UserError
from mocokit.evaluation.baselines import features_of
from tests.helpers import class_folders, write_images
from tests.tiny_runs import TinyRun

WHO = ("encoder", "random_init", "raw_pixels", "colour_histogram")
SGD = {"protocol": "sgd", "epochs": 2, "lr": 0.02, "batch_size": 16}


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path) -> Path:
    """A copy of the finished run that may be written to."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return tmp_path / "run"


def images_of(folder: Path) -> tuple[list[Path], np.ndarray]:
    files = sorted(folder.rglob("*.png"))
    return files, np.array([int(file.parent.name[-1]) for file in files])


def test_figures_are_scikit_learns_on_the_same_features(tiny_run: TinyRun, run):
    result = mocokit.probe(str(run), str(tiny_run.data), device="cpu")
    encoder = mocokit.load(run)
    (files, labels), (test_files, test_labels) = (images_of(tiny_run.data / s) for s in ("train", "test"))
    found = result["encoder"]
    C = 1 / (found["l2"] * len(files))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-9, max_iter=10_000))
    predicted = model.fit(encoder.embed(files).numpy(), labels).predict(encoder.embed(test_files).numpy())
    assert found["confusion"] == confusion_matrix(test_labels, predicted).tolist()
    assert found["top1"] == pytest.approx((predicted == test_labels).mean())
    assert found["balanced"] == pytest.approx(balanced_accuracy_score(test_labels, predicted))
    assert found["top1"] > 0.5
    assert found["top5"] is None  # of three classes


def test_result(tiny_run: TinyRun, run):
    result = mocokit.probe(str(run), str(tiny_run.data))
    assert json.loads((run / "results" / "probe.json").read_text()) == result
    assert {"wall_s", "config", "versions", "data_fingerprint"} < set(result)
    assert (result["protocol"], result["ci95_of"]) == ("fast", "top-1 over test images")
    assert result["images"] == {"train": 57, "val": 15, "test": 48}  # a fifth of 24, in three classes
    for who in WHO:
        for figure, interval in (("top1", "ci95"), ("balanced", "balanced_ci95")):
            low, high = result[who][interval]
            assert 0 <= low <= result[who][figure] <= high <= 1
            assert low < high
        assert {name: c["images"] for name, c in result[who]["per_class"].items()} == {
            f"class{value}": 16 for value in range(3)
        }
    assert len({str(result[who]["confusion"]) for who in WHO}) > 2  # or the comparison would prove nothing
    again = mocokit.probe(str(run), str(tiny_run.data))
    assert [again[who] | {"wall_s": 0} for who in WHO] == [result[who] | {"wall_s": 0} for who in WHO]


def test_without_a_baseline_the_encoder_alone_is_measured(tiny_run: TinyRun, run):
    alone, beside = (mocokit.probe(str(run), str(tiny_run.data), baseline=baseline) for baseline in (False, True))
    assert set(WHO) - alone.keys() == set(WHO) - {"encoder"}
    assert alone["encoder"] | {"wall_s": 0} == beside["encoder"] | {"wall_s": 0}


def test_sgd_leaves_its_epochs(tiny_run: TinyRun, run, capfd):
    before = (run / "encoder.safetensors").read_bytes()
    for _ in range(2):  # a second one replaces the first
        result = mocokit.probe(str(run), str(tiny_run.data), **SGD)
    with (run / "probe-sgd.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["val_top1"]) <= 1 and float(row["loss"]) > 0 for row in rows)
    events = EventAccumulator(str(run / "tensorboard" / "probe-sgd"), size_guidance={"histograms": 0}).Reload()
    assert events.Tags()["histograms"] == ["weight", "bias"]
    assert [event.step for event in events.Histograms("weight")] == [3, 6]  # steps, three an epoch
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        [float(row["loss"]) for row in rows], rel=1e-4
    )
    assert set(result["encoder"]) >= {"top1", "top5", "balanced", "ci95", "per_class", "confusion"}
    assert [who for who in WHO if "l2" in result[who]] == ["raw_pixels", "colour_histogram"]
    assert (run / "encoder.safetensors").read_bytes() == before
    assert "without a network, by the fast protocol:" in capfd.readouterr().err
    fast = mocokit.probe(str(run), str(tiny_run.data))
    for who in WHO[2:]:
        assert result[who] | {"wall_s": 0} == fast[who] | {"wall_s": 0}
    kept = [json.loads((run / "results" / f"{name}.json").read_text()) for name in ("probe", "probe_sgd")]
    assert kept == [fast, result | {"wall_s": kept[1]["wall_s"]}]


@pytest.mark.parametrize("options", [{"labels_per_class": 4}, {"label_fraction": 1 / 6}])
def test_few_labels(tiny_run: TinyRun, run, options):
    result = mocokit.probe(str(run), str(tiny_run.data), repeats=4, **options)
    assert result["images"] == {"train": 12, "val": 0, "test": 48}
    assert result["ci95_of"] == "mean top-1 over choices of labels and test images"
    for who in WHO[-2:]:
        assert result[who]["accuracies"] == [1.0] * 4  # the colour is the class
    for who in WHO[:-2]:
        accuracies = result[who]["accuracies"]
        assert result[who]["top1"] == pytest.approx(np.mean(accuracies))
        assert len(accuracies) == len(result[who]["l2"]) == 4
        assert result[who]["top5"] is None  # of three classes
        assert len(set(accuracies)) > 1  # the choices differ
        of_choices = stats.t.interval(0.95, 3, np.mean(accuracies), stats.sem(accuracies))
        of_images = stats.binomtest(round(48 * np.mean(accuracies)), 48).proportion_ci(method="wilson")
        low, high = result[who]["ci95"]
        assert low < min(of_choices[0], of_images.low)
        assert high == 1 or high > max(of_choices[1], of_images.high)


def test_few_labels_once_have_an_interval_over_the_test_images(tiny_run: TinyRun, run):
    result = mocokit.probe(str(run), str(tiny_run.data), labels_per_class=2, repeats=1, **SGD)
    assert (result["ci95_of"], result["images"]["train"]) == ("top-1 over test images", 6)
    low, high = result["encoder"]["ci95"]
    assert low < result["encoder"]["top1"] == result["encoder"]["accuracies"][0] < high
    assert not (run / "probe-sgd.csv").exists()  # one curve would not stand for all


def test_options_that_cannot_be(tiny_run: TinyRun, run):
    data = str(tiny_run.data)
    with pytest.raises(UserError, match="exclude each other"):
        mocokit.probe(str(run), data, labels_per_class=1, label_fraction=0.5)
    with pytest.raises(UserError, match=r"class 'class0' has 24 labelled"):
        mocokit.probe(str(run), data, labels_per_class=25)
    write_images(run.parent / "unlabelled", ["a.png", "b.png"])
    with pytest.raises(UserError, match="needs labels"):
        mocokit.probe(str(run), str(run.parent / "unlabelled"))
    assert not (run / "results" / "probe.json").exists()


def test_images_without_a_label_are_left_out(tiny_run: TinyRun, run, tmp_path):
    expected = mocokit.probe(str(run), str(tiny_run.data))
    shutil.copytree(tiny_run.data, tmp_path / "data")
    write_images(tmp_path / "data", ["train/a.png", "test/b.png"], height=12, width=10)
    result = mocokit.probe(str(run), str(tmp_path / "data"))
    assert result["images"] == expected["images"]
    assert result["encoder"]["top1"] == expected["encoder"]["top1"]


def test_test_images_alone_are_refused(tiny_run: TinyRun, run, tmp_path):
    shutil.copytree(tiny_run.data / "test", tmp_path / "data" / "test")
    with pytest.raises(UserError, match=r"no images to train on: .* all are test images"):
        mocokit.probe(str(run), str(tmp_path / "data"))


def test_odd_class_folders(run, tmp_path):
    """A class of one image, one that only the test split has, one that only the training split has."""
    names = [f"train/common/{i}.png" for i in range(9)] + ["train/single/0.png"]
    names += [f"train/untested/{i}.png" for i in range(5)]
    names += ["test/common/0.png", "test/single/0.png", "test/unknown/0.png"]
    write_images(tmp_path / "odd", names)
    result = mocokit.probe(str(run), str(tmp_path / "odd"))
    figures = result["encoder"]["per_class"]
    assert figures["unknown"] == {"precision": None, "recall": 0, "images": 1}
    assert figures["untested"]["recall"] is None
    assert figures["untested"]["images"] == 0
    assert result["encoder"]["top1"] <= 2 / 3  # one of the classes is never guessed
    json.dumps(result, allow_nan=False)


def test_a_test_part_is_held_out_where_there_is_none(run, tmp_path):
    only = class_folders(tmp_path / "flat", train=10) / "train"
    result = mocokit.probe(str(run), str(only))
    assert result["images"] == {"train": 12, "val": 4, "test": 4}
    assert result["encoder"]["top5"] is None  # two classes


def test_an_encoder_file_alone_on_other_classes(run, tmp_path):
    alone = shutil.copy(run / "encoder.safetensors", tmp_path / "alone.safetensors")
    result = mocokit.probe(str(alone), "digits", limit=200)
    assert result["encoder"]["top1"] > 0.3
    assert len(result["encoder"]["per_class"]) == 10
    mocokit.probe(str(alone), "digits", limit=50, **SGD | {"epochs": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.safetensors", "run"]
    assert not (run / "results" / "probe.json").exists()


def test_lines_on_stderr(tiny_run: TinyRun, run, capfd):
    assert main(["probe", str(run), str(tiny_run.data), "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    assert json.loads(stdout) == json.loads((run / "results" / "probe.json").read_text())
    lines = stderr.splitlines()[-4:]
    assert [line[:17].rstrip() for line in lines] == ["encoder", "random init", "raw pixels", "colour histogram"]
    assert all("(95 %: " in line and "balanced" in line and "top-5" not in line for line in lines)  # of three classes


def test_a_rate_that_is_too_high_is_told(tiny_run: TinyRun, run, capfd):
    mocokit.probe(str(run), str(tiny_run.data), protocol="sgd", epochs=3, lr=1e5)
    assert "above chance (1.10)" in capfd.readouterr().err


def test_a_backbone_that_changes_is_our_fault(tiny_run: TinyRun, run, monkeypatch):
    def careless(encoder):
        with torch.no_grad():
            next(encoder.parameters()).mul_(1.001)
        return features_of(encoder)

    monkeypatch.setattr("mocokit.commands.probe.features_of", careless)
    with pytest.raises(AssertionError, match="has to stay frozen"):
        mocokit.probe(str(run), str(tiny_run.data))
    assert not (run / "results" / "probe.json").exists()
