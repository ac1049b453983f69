"""One step of pretraining, and the encoder file that comes of it, over kinds of backbones."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mocokit
from mocokit.auto.defaults import Facts, defaults
from mocokit.data.dataset import Batch
from mocokit.deploy.encoder_file import save_encoder
from mocokit.model import fused
from mocokit.model.conv import ProductConv2d
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.residual import FusedBasicBlock
from mocokit.training.pretraining import Pretraining, Views

FACTS = Facts(name="x", images=5000, image_size=32, longest=32, channels=3, device="cpu", bf16=False, cpus=1)
V2 = {"queue_size": 16}
V3 = {"queue_size": 0, "symmetric": True, "bn_splits": 1, "momentum_end": 1.0, "head_hidden": 16}
V3_RESNET = V3 | {"head": "v3-resnet", "optimizer": "lars", "lr": 1.0, "views": "v3"}
V3_VIT = V3 | {"head": "v3-vit", "optimizer": "adamw", "views": "v3"}


def task(backbone, size=32, restart=0, **values):
    given = {"data": "x", "backbone": backbone, "steps": 10, "batch_size": 8, "bn_splits": 2}
    given |= {"view_size": size, "view_size_end": size} | values
    spec = EncoderSpec(backbone, size, 3, (0.5,) * 3, (0.25,) * 3)
    return Pretraining(defaults(given, dataclasses.replace(FACTS, image_size=size)).config, spec, restart)


def untrained(K, symmetric):
    return task("resnet18_narrow", 8, queue_size=K, symmetric=symmetric, temperature=0.1)


def views_of(step):
    """Of other images at each step; the two views of an image have nothing in common."""
    x1, x2 = torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    return Views(x1, x2, torch.arange(8 * step, 8 * step + 8), step)


def step(pretraining, seed=0):
    size = pretraining.spec.image_size
    x1, x2 = torch.randn(2, 8, 3, size, size, generator=torch.Generator().manual_seed(seed))
    optimizer, _ = pretraining.configure_optimizer()
    loss = pretraining(Views(x1, x2, torch.arange(8), 0))
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("splits", [0, 1, 2])
def test_a_cpu_has_operations_of_its_own_in_both_encoders(splits):
    moco = task("resnet18_narrow", bn_splits=splits).moco
    for encoder in (moco.encoder_q, moco.encoder_k):
        kinds = [type(m) for m in encoder.modules()]
        assert ProductConv2d in kinds
        assert (FusedBasicBlock in kinds) is (splits > 0)  # frozen statistics need no batch's


def test_a_step_on_a_cpu_normalises_at_once(monkeypatch):
    """Every batch norm of both encoders."""
    calls, real = [], fused.normalise
    monkeypatch.setattr(fused, "normalise", lambda *a: calls.append(a) or real(*a))
    pretraining = task("resnet18_narrow", batch_size=8, bn_splits=2)
    step(pretraining)
    norms = [m for m in pretraining.moco.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(calls) == 2 * len(norms)


@pytest.mark.parametrize(
    ("backbone", "size", "options"),
    [
        ("resnet18", 32, V2),
        ("convnext_atto", 32, V3_RESNET),
        ("efficientnet_b0", 32, V2),
        ("mobilenetv3_small_100", 32, V3_RESNET),
        ("vit_tiny_patch16_224", 48, V3_VIT),
        ("swin_tiny_patch4_window7_224", 64, V2),
    ],
)
def test_any_pooled_backbone_learns_and_round_trips(backbone, size, options, tmp_path):
    pretraining = task(backbone, size, **options)
    before = [p.clone() for p in pretraining.moco.encoder_q.parameters()]
    assert torch.isfinite(step(pretraining))
    pairs = zip(pretraining.moco.encoder_q.parameters(), before, strict=True)
    assert not any(torch.equal(p, old) for p, old in pairs if p.requires_grad and p.ndim > 1)
    encoder = Encoder(pretraining.moco.backbone, pretraining.spec)
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"seed": 0})
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    loaded = mocokit.load(tmp_path / "encoder.safetensors").embed(images)
    torch.testing.assert_close(loaded, encoder.embed(images))


def test_frozen_parameters_do_not_move():
    """Neither by gradient nor by decay, in either encoder."""
    pretraining = task("vit_narrow", 16, **V3_VIT | {"weight_decay": 0.5, "lr": 0.1})
    frozen = [p for p in pretraining.moco.encoder_q.parameters() if not p.requires_grad]
    before = [p.clone() for p in frozen]
    for seed in range(2):
        step(pretraining, seed)
    assert len(frozen) == 3
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(frozen, before, strict=True))
    keys = dict(pretraining.moco.encoder_k[0].named_parameters())
    assert torch.equal(keys["pos_embed"], pretraining.moco.backbone.pos_embed)


def test_layer_norm_backbones_have_no_split_batch_norm():
    pretraining = task("vit_narrow", 16, head="mlp", bn_splits=4)
    assert not any(hasattr(m, "splits") for m in pretraining.modules())


@pytest.mark.parametrize(("restart", "at", "share"), [(0, 5, 0.05), (6, 8, 0.05), (6, 6, 0.1)])
def test_momentum_is_a_function_of_the_step(restart, at, share):
    """At step 5 of 10 half way from 0.9 to 1: the key encoder takes 5 % of the query encoder. An extension
    of 4 steps is half way after 2."""
    pretraining = task("resnet18_narrow", 8, restart, momentum=0.9, **V3_RESNET)
    q, k = (next(e.parameters()) for e in (pretraining.moco.encoder_q, pretraining.moco.encoder_k))
    with torch.no_grad():
        q.add_(1)
    before = k.clone()
    x1, x2 = torch.randn(2, 8, 3, 8, 8)
    pretraining(Views(x1, x2, torch.arange(8), at))
    torch.testing.assert_close(k - before, torch.full_like(k, share))


def test_views_grow_with_the_step():
    """A network without fixed size sees them, the encoder keeps its own."""
    pretraining = task("resnet18_narrow", 16, queue_size=16, view_size=8, view_size_end=12)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    for at, size in ((0, 8), (4, 8), (6, 12), (9, 12)):
        views = pretraining.views(Batch(images, torch.full((8, 2), 16), torch.arange(8), at))
        assert views.x1.shape == views.x2.shape == (8, 3, size, size)
        assert torch.isfinite(pretraining(views))
    assert pretraining.spec.image_size == 16


def test_views_of_an_extension_stay_as_large_as_they_had_become():
    pretraining = task("resnet18_narrow", 16, restart=6, queue_size=16, view_size=8, view_size_end=12)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    for at in range(6, 10):
        assert pretraining.views(Batch(images, torch.full((8, 2), 16), torch.arange(8), at)).x1.shape == (8, 3, 12, 12)


@settings(max_examples=15)
@given(K=st.integers(1, 40), symmetric=st.booleans(), rows=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_loss_is_compared_with_chance_once_every_key_is_real(K, symmetric, rows):
    """Rows of any numbers of steps: a row has the figure if no step of it met a key of nobody, and then it is the mean
    loss by log(K + 1)."""
    pretraining, at = untrained(K, symmetric), 0
    for length in rows:
        losses, real = [], True
        for step in range(at, at + length):
            real = real and bool((pretraining.moco.queue.ids >= 0).all())
            losses.append(pretraining(views_of(step)).item())
            pretraining.sums[3] += 1  # the loop's part
        at += length
        figures = pretraining.means()
        assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert ("loss_over_chance" in figures) == real
        if real:
            assert figures["loss_over_chance"] == pytest.approx(np.mean(losses) / np.log(K + 1), rel=1e-4)
    assert (pretraining.steps_to_fill <= at) == (float(pretraining.moco.queue.fill) == 1)


def test_a_row_that_was_interrupted_is_compared_as_a_whole():
    """The checkpoint has its sums, so the steps before it count."""
    for interrupted, at in ((True, 1), (True, 2), (False, 2)):
        pretraining, other = untrained(16, False), untrained(16, False)
        for step in range(4):
            if step == at:
                if not interrupted:
                    pretraining.means()
                other.load_state_dict(pretraining.state_dict())
                pretraining = other
            pretraining(views_of(step))
        assert ("loss_over_chance" in pretraining.means()) == (not interrupted)


def test_an_untrained_network_is_at_chance_and_never_said_to_be_below():
    """Against random keys alone, which are easy to tell from real ones, its loss is a twentieth of log(K + 1)."""
    pretraining, rows = untrained(64, False), []
    for step in range(12):
        pretraining(views_of(step))
        rows.append(pretraining.means())
    assert rows[0]["loss"] < 0.1 * np.log(65)
    assert not any("loss_over_chance" in row for row in rows[:8])
    assert all(0.95 < row["loss_over_chance"] < 1.3 for row in rows[8:])


def test_a_batch_of_negatives_is_compared_at_once():
    pretraining = task("resnet18_narrow", 8, **V3_RESNET)
    loss = pretraining(views_of(0)).item()
    assert pretraining.means()["loss_over_chance"] == pytest.approx(loss / pretraining.chance_level, rel=1e-5)
