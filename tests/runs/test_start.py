"""Pretraining goes on from trained weights: both encoders start there, and the run keeps what it started from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mocokit
from mocokit.commands import pretrain
from mocokit.errors import Interrupted, UserError
from mocokit.model.backbones import create_backbone
from mocokit.training.pretraining import Pretraining
from tests.helpers import class_folders
from tests.tiny_runs import TINY, coloured_data

OPTIONS = {name: value for name, value in TINY.items() if name not in ("backbone", "image_size", "bn_splits")}
OPTIONS |= {"epochs": 1, "monitor_every": 0}
NARROW = {"backbone": "resnet18_narrow", "image_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    coloured_data(folder / "data")
    backbone = create_backbone("resnet18_narrow", 3, 32)
    draw = torch.Generator().manual_seed(5)
    for name, tensor in backbone.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=draw)
            tensor.add_(noise if name.endswith("running_var") else 0.1 * (noise - 0.5))
    torch.save({"state_dict": {f"module.encoder_q.{n}": t for n, t in backbone.state_dict().items()}}, folder / "w.pth")
    return folder


def start_from(place, weights, out, **options):
    return mocokit.pretrain(str(place / "data"), out=str(place / out), weights=str(weights), **{**OPTIONS, **options})


def test_both_encoders_start_there_and_the_run_keeps_it(place, monkeypatch, capfd):
    began = []
    monkeypatch.setattr(
        Pretraining,
        "configure_optimizer",
        lambda self, own=Pretraining.configure_optimizer: (
            began.append(
                [{n: t.clone() for n, t in e.state_dict().items()} for e in (self.moco.encoder_q, self.moco.encoder_k)]
            )
            or own(self)
        ),
    )
    result = start_from(place, place / "w.pth", "first", **NARROW)
    assert result["config"]["weights"] == str(place / "w.pth")
    assert result["recipe"] == "continue"
    weights = {n.removeprefix("module.encoder_q."): t for n, t in torch.load(place / "w.pth")["state_dict"].items()}
    for encoder in began[-1]:
        ours = {name.partition(".")[2]: tensor for name, tensor in encoder.items()}  # encoders are backbone and head
        assert all(torch.equal(ours[name], tensor) for name, tensor in weights.items())
    initial = load_file(place / "first" / "initial.safetensors")
    assert all(torch.equal(initial[name], tensor) for name, tensor in weights.items())
    trained = load_file(place / "first" / "encoder.safetensors")
    assert not torch.equal(trained["conv1.weight"], weights["conv1.weight"])
    # Statistics of batch norm stay those of the weights, by the recipe.
    assert torch.equal(trained["bn1.running_mean"], weights["bn1.running_mean"])
    stderr = capfd.readouterr().err
    rows = {"encoder", "given_weights", "random_init", "raw_pixels", "colour_histogram"}
    assert result["knn"].keys() == result["scorecard"].keys() == rows
    assert "points from the given weights (" in result["verdict"]
    measured = mocokit.knn(str(place / "first"), str(place / "data"))
    assert measured.keys() >= rows
    assert measured["given_weights"]["top1"] == result["knn"]["given_weights"]["top1"]
    as_given = mocokit.knn(str(place / "w.pth"), str(place / "data"), **NARROW)
    mean = torch.tensor(mocokit.load(place / "first").spec.mean)
    assert torch.equal(mean, torch.tensor(mocokit.load(place / "w.pth", **NARROW).spec.mean))  # their own preprocessing
    assert as_given["encoder"]["top1"] == measured["given_weights"]["top1"]
    assert mocokit.probe(str(place / "first"), str(place / "data"))["given_weights"]["top1"] > 0
    assert mocokit.scorecard(str(place / "first"), str(place / "data"))["scorecard"].keys() == rows
    assert f"{place / 'w.pth'}: resnet18_narrow: 100 tensors taken under state_dict.module.encoder_q." in stderr
    assert "  backbone = resnet18_narrow" not in stderr  # it was given


def test_a_finished_run_is_a_start_with_its_own_preprocessing(place, capfd):
    start_from(place, place / "w.pth", "one", **NARROW)
    first = mocokit.load(place / "one")
    capfd.readouterr()
    start_from(place, place / "one", "second")
    second = mocokit.load(place / "second")
    assert second.spec == first.spec
    assert "backbone = resnet18_narrow  (of the weights)" in capfd.readouterr().err
    initial = mocokit.load(place / "second" / "initial.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(initial.parameters(), first.parameters(), strict=True))


def test_fine_tuning_keeps_the_statistics_of_given_weights(place, tmp_path):
    """Of weights that others trained, and of a run that went on from them; not of a network from random weights."""
    start_from(place, place / "w.pth", "tuned", **NARROW)
    given = mocokit.load(place / "w.pth", **NARROW).backbone.bn1
    for number, (run, options) in enumerate([(place / "w.pth", NARROW), (place / "tuned", {})]):
        tuned = mocokit.finetune(str(run), str(place / "data"), out=str(tmp_path / str(number)), epochs=2, **options)
        kept = mocokit.load(tmp_path / str(number)).backbone.bn1
        assert torch.equal(kept.running_mean, given.running_mean)
        assert tuned["encoder"]["epochs"] == 2
        scratch = mocokit.load(tmp_path / str(number) / "from-scratch").backbone.bn1
        assert int(scratch.num_batches_tracked) > 0 or tuned["random_init"]["best_epoch"] == 0


def test_going_on_needs_the_same_weights_but_not_their_place(place, monkeypatch):
    """Stopped and resumed by another spelling, and when the weights have gone: bit for bit what it would have been."""
    options = {**NARROW, "epochs": 2}
    whole = start_from(place, place / "w.pth", "whole", **options)

    def stop(self, *arguments):
        raise Interrupted("stopped")

    (place / "moved.pth").write_bytes((place / "w.pth").read_bytes())
    for weights in (place / "moved.pth", place / "gone.pth"):
        if weights.name == "gone.pth":
            weights.write_bytes((place / "w.pth").read_bytes())
        out = weights.stem
        with monkeypatch.context() as patch:
            patch.setattr(Pretraining, "before_optimizer_step", stop)
            with pytest.raises(Interrupted):
                start_from(place, weights, out, **options)
        if weights.name == "gone.pth":
            weights.unlink()
            resumed = start_from(place, weights, out, **options)
        else:
            resumed = start_from(place, place / "w.pth", out, **options)
        assert resumed["loss"] == whole["loss"]
        a, b = (load_file(place / name / "encoder.safetensors") for name in ("whole", out))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_other_weights_or_none_are_refused(place):
    start_from(place, place / "w.pth", "third", **NARROW)
    other = {n: t + 1 for n, t in torch.load(place / "w.pth")["state_dict"].items()}
    save_file(other, place / "other.safetensors")
    with pytest.raises(UserError, match=r"holds a run with --weights .*w.pth; give the same"):
        start_from(place, place / "other.safetensors", "third", **NARROW)
    with pytest.raises(UserError, match=r"holds a run with --weights .*w.pth; give the same, or another --out"):
        mocokit.pretrain(str(place / "data"), out=str(place / "third"), **OPTIONS, **NARROW)
    result = json.loads((place / "third" / "results" / "pretrain.json").read_text())
    assert start_from(place, place / "w.pth", "third", **NARROW) == result


def test_weights_that_do_not_fit_leave_no_run(place):
    with pytest.raises(UserError, match=r"w.pth: has no .* of resnet34"):
        start_from(place, place / "w.pth", "none", backbone="resnet34")
    with pytest.raises(UserError, match="--backbone resnet: timm has no such model"):
        start_from(place, "timm:resnet", "none")
    assert not (place / "none").exists()


def test_known_weights_are_named_where_they_help_and_can_be_had(place, tmp_path, monkeypatch, capfd):
    """On a CPU, of images of 64 pixels and more, unless the run has weights or there is no network."""
    large = class_folders(tmp_path / "large", train=8, height=70, width=80)
    asked = []
    monkeypatch.setattr(pretrain, "is_hub_reachable", lambda: asked.append(1) or len(asked) == 1)
    for number, (data, options, is_told) in enumerate(
        [
            (place / "data", NARROW, False),
            (large, {**NARROW, "weights": str(place / "w.pth"), "image_size": 32}, False),
            (large, {**NARROW, "image_size": 32}, True),
            (large, {**NARROW, "image_size": 32}, False),  # there is no network any more
        ]
    ):
        mocokit.pretrain(str(data), out=str(tmp_path / str(number)), **OPTIONS, **options)
        assert ("try --weights timm, known weights" in capfd.readouterr().err) == is_told, number
    assert len(asked) == 2  # the network is not asked for nothing
