"""Supervised training: rates of the layers, the best epoch, early stopping, and a resume that changes nothing."""

import copy
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mocokit.config import FinetuneConfig
from mocokit.data.store import ImageSet, open_store
from mocokit.errors import Interrupted, UserError
from mocokit.model import fused
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.rundir import RunDirectory
from mocokit.training.checkpoint import Checkpoints
from mocokit.training.finetuning import Finetuning, attach_classifier, layer_groups, starting_loss, train_classifier
from mocokit.training.log import read_rows
from tests.tiny_runs import coloured_data

CONFIG = FinetuneConfig(run="run", data="data", device="cpu", epochs=4, batch_size=16, lr=3e-3, patience=0, seed=3)
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ImageSet:
    folder = coloured_data(tmp_path_factory.mktemp("finetune"))
    return open_store(str(folder), image_size=8).splits["train"]


def new_encoder(backbone: str = "resnet18_narrow", size: int = 8, seed: int = 0) -> Encoder:
    spec = EncoderSpec(backbone, size, 3, (0.5,) * 3, (0.25,) * 3)
    return attach_classifier(Encoder.create(spec, seed), CLASSES, seed)


def train(images: ImageSet, path: Path, config: FinetuneConfig = CONFIG, curve=None) -> tuple[Finetuning, Encoder]:
    """Train on all but ten images; ``curve`` is what validation says at the start and after each epoch."""
    rows = torch.arange(10, len(images))
    module = Finetuning(new_encoder(), config, images, rows)

    def validate(encoder: Encoder) -> float:
        epoch = len(read_rows(path / "metrics.csv"))
        return 0.0 if curve is None else curve[epoch]

    return module, train_classifier(module, RunDirectory(path), validate, lambda row: None)


def rows_of(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_rows(path / "metrics.csv")]


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# Layers


def rates(encoder: Encoder, config: FinetuneConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, each of which must be in one group."""
    groups = layer_groups(encoder, config.lr, config.layer_decay, config.weight_decay)
    groups = torch.optim.AdamW(groups, lr=config.lr).param_groups
    names = {id(p): name for name, p in encoder.named_parameters()}
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(found) == len(dict(found)) == len([p for p in encoder.parameters() if p.requires_grad])
    return dict(found)


def test_resnet_layers_from_the_closed_form():
    """A stem and eight blocks; the classifier, the ninth block in effect, has the full rate."""
    found = rates(new_encoder(), replace(CONFIG, layer_decay=0.5, lr=1.0))
    depth = {"conv1": 0, "bn1": 0} | {f"layer{1 + i // 2}.{i % 2}": 1 + i for i in range(8)}
    for name, (lr, _) in found.items():
        own = [d for prefix, d in depth.items() if name.startswith(f"backbone.{prefix}.")]
        assert lr == (0.5 ** (9 - own[0]) if own else 1.0), name
    assert {lr for lr, _ in found.values()} == {0.5**i for i in range(10)}


def test_transformer_layers_from_the_closed_form():
    encoder = new_encoder("vit_tiny_patch16_224", 224)
    found = rates(encoder, replace(CONFIG, layer_decay=0.75, lr=1.0))
    assert found["backbone.blocks.0.attn.qkv.weight"][0] == pytest.approx(0.75**12)
    assert found["backbone.blocks.11.attn.qkv.weight"][0] == pytest.approx(0.75)
    assert found["backbone.norm.weight"][0] == pytest.approx(0.75)
    assert found["backbone.patch_embed.proj.weight"][0] == pytest.approx(0.75**13)
    assert found["classifier.weight"][0] == 1
    assert found["backbone.cls_token"] == (pytest.approx(0.75**13), 0)  # no weight, so not decayed
    assert "backbone.pos_embed" not in found  # fixed, as in pretraining


@pytest.mark.parametrize("backbone", ["resnet18_narrow", "mobilenetv3_small_050", "convnext_atto"])
def test_plain_rates_and_what_is_decayed(backbone):
    encoder = new_encoder(backbone, 32)
    found = rates(encoder, replace(CONFIG, weight_decay=0.07))
    for name, parameter in encoder.named_parameters():
        assert found[name] == (CONFIG.lr, 0.07 if parameter.ndim > 1 else 0.0), name


# The start


@pytest.mark.parametrize("keep", [False, True])
def test_the_starting_loss_is_that_of_the_first_step(images, tmp_path, keep):
    rows, config = torch.arange(len(images)), replace(CONFIG, epochs=1, batch_size=len(images))
    before, task = torch.random.get_rng_state(), Finetuning(new_encoder(), config, images, rows, keep)
    found = starting_loss(Finetuning(new_encoder(), config, images, rows, keep))
    assert torch.equal(torch.random.get_rng_state(), before)
    train_classifier(task, RunDirectory(tmp_path), lambda encoder: 0.0)
    assert float(read_rows(tmp_path / "metrics.csv")[1]["loss"]) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize(("later", "epochs", "best"), [([0.1, 0.2, 0.3, 0.7, 0.6], 4, 4), ([0.1] * 4, 4, 0)])
def test_a_new_classifier_has_time_to_get_better_than_the_start(images, tmp_path, monkeypatch, later, epochs, best):
    """And a resume in between changes nothing."""
    small = {"weight": torch.zeros(3, 128), "bias": torch.ones(3)}
    rows, config = torch.arange(len(images)), replace(CONFIG, epochs=4, patience=1)
    curve, states = [0.6, *later], []
    monkeypatch.setattr("mocokit.training.finetuning.CHECKPOINT_SECONDS", -1)  # one after each step
    for stops in ((), (1, 6)):
        path = tmp_path / str(len(stops))
        for stop in (*stops, None):
            task = Finetuning(new_encoder(), config, images, rows)
            before = task.best.classifier.weight.clone()
            task.small = None if (path / "checkpoints").exists() else small

            def report(step, steps, stop=stop):
                if step == stop:
                    raise KeyError

            def validate(encoder, path=path):
                return curve[len(read_rows(path / "metrics.csv")) if (path / "metrics.csv").exists() else 0]

            with nullcontext() if stop is None else pytest.raises(KeyError):
                train_classifier(task, RunDirectory(path), validate, report=report)
        assert int(task.best_epoch) == best
        assert torch.equal(task.best.classifier.weight, before) is (best == 0)
        assert int(read_rows(path / "metrics.csv")[-1]["epoch"]) == epochs
        states.append(task.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# The best epoch and early stopping


@pytest.mark.parametrize(
    ("curve", "patience", "epochs", "best"),
    [
        ([0.0, 0.1, 0.5, 0.4, 0.3, 0.2, 0.9], 3, 5, 2),  # the rise after the stop is never seen
        ([0.0, 0.1, 0.5, 0.4, 0.3, 0.2, 0.9], 4, 6, 6),
        ([0.0, 0.1, 0.5, 0.4, 0.3, 0.2, 0.2], 0, 6, 2),  # no patience: to the end
        ([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 2, 3, 1),  # of equals the first
        ([0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 2, 2, 0),  # nothing better than the start
        ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 6, 6),
    ],
)
def test_early_stopping_and_best_epoch(images, tmp_path, curve, patience, epochs, best):
    config = replace(CONFIG, epochs=6, patience=patience)
    module, encoder = train(images, tmp_path / "run", config, curve)
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(epochs + 1))
    assert [float(row["val_top1"]) for row in rows] == curve[: epochs + 1]
    assert (int(module.best_epoch), float(module.best_top1)) == (best, pytest.approx(curve[best]))
    assert same(encoder, module.encoder) == (best == epochs)

    # The weights are those of that epoch: a run that ends by its best epoch is followed up to there.
    until = replace(config, patience=0)
    reference = stopped_after(images, tmp_path / "reference", until, best)
    assert same(encoder, reference)

    # Started again, a run that stopped early stays stopped.
    again, kept = train(images, tmp_path / "run", config, curve)
    assert same(kept, encoder)
    assert same(again.encoder, module.encoder)
    assert read_rows(tmp_path / "run" / "metrics.csv") == rows


def stopped_after(images: ImageSet, path: Path, config: FinetuneConfig, epoch: int) -> nn.Module:
    """The encoder after ``epoch`` epochs of a run."""
    kept: list[Encoder] = []
    rows = torch.arange(10, len(images))
    module = Finetuning(new_encoder(), config, images, rows)

    def validate(encoder: Encoder) -> float:
        kept.append(copy.deepcopy(encoder))
        return 0.0

    train_classifier(module, RunDirectory(path), validate, lambda row: None)
    return kept[epoch]


# Learning and resuming


def test_it_learns_and_frozen_copies_stay_still(images, tmp_path):
    config = replace(CONFIG, epochs=12)
    module, first = train(images, tmp_path / "run", config)
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert float(rows[1]["loss"]) > 0.9  # log 3 = 1.1 for a classifier that starts near zero
    assert float(rows[-1]["loss"]) < 0.3
    assert float(rows[-1]["top1"]) > 0.9
    assert float(rows[-1]["lr"]) < 0.1 * CONFIG.lr
    assert int(module.best_epoch) == 0
    assert not same(first, module.encoder)


def test_a_cpu_normalises_at_once(images, tmp_path, monkeypatch):
    calls, real = [], fused.normalise
    monkeypatch.setattr(fused, "MANY", 1000)
    monkeypatch.setattr(fused, "normalise", lambda *a: calls.append(a) or real(*a))
    train(images, tmp_path, replace(CONFIG, epochs=1))
    assert calls


def test_a_loaded_encoder_trains_its_batch_norm(images, tmp_path):
    """Loaded encoders are in evaluation mode; training them like that would freeze the statistics."""
    rows = torch.arange(len(images))
    module = Finetuning(new_encoder().eval(), CONFIG, images, rows)
    best = train_classifier(module, RunDirectory(tmp_path), lambda encoder: 0.0, lambda row: None)
    steps = CONFIG.epochs * module.per_epoch
    norms = [m for m in module.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(int(norm.num_batches_tracked) == steps for norm in norms)
    assert not any(m.training for m in best.modules())


@pytest.mark.parametrize("step", [1, 6, 9])  # within an epoch of three steps, at its end
def test_interrupted_at_any_step_ends_the_same(images, tmp_path, monkeypatch, step):
    curve = [0.1, 0.2, 0.6, 0.4, 0.5]
    module, encoder = train(images, tmp_path / "whole", CONFIG, curve)

    save = Checkpoints.save_if_due

    def stop_at(self, trainer, last):
        if trainer.step == step:
            self.signal = signal.SIGTERM
        save(self, trainer, last)

    monkeypatch.setattr(Checkpoints, "save_if_due", stop_at)
    with pytest.raises(Interrupted, match=f"step {step} "):
        train(images, tmp_path / "run", CONFIG, curve)
    monkeypatch.undo()
    resumed, kept = train(images, tmp_path / "run", CONFIG, curve)
    assert same(resumed, module)  # weights, statistics, the best epoch's, sums
    assert same(kept, encoder)
    ours, theirs = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("run", "whole")
    )
    assert ours["step"] == theirs["step"] == 4 * module.per_epoch
    assert str(ours["optimizer"]) == str(theirs["optimizer"])
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_a_loss_that_is_no_number_is_one_line(images, tmp_path):
    with pytest.raises(UserError, match=r"not finite.*--lr than 1e\+30$"):
        train(images, tmp_path / "run", replace(CONFIG, lr=1e30))


def test_classifier_is_a_function_of_the_seed():
    first, again, other = (new_encoder(seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.classifier.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not first.classifier.bias.any()
