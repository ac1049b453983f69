"""One step of pretraining, and the encoder file that comes of it, over kinds of backbones."""

import dataclasses

import pytest
import torch

import mocokit
from mocokit.auto.defaults import Facts, defaults
from mocokit.data.dataset import Batch
from mocokit.deploy.encoder_file import save_encoder
from mocokit.model.encoder import Encoder, EncoderSpec
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


def step(pretraining, seed=0):
    size = pretraining.spec.image_size
    x1, x2 = torch.randn(2, 8, 3, size, size, generator=torch.Generator().manual_seed(seed))
    optimizer, _ = pretraining.configure_optimizer()
    loss = pretraining(Views(x1, x2, torch.arange(8), 0))
    loss.backward()
    optimizer.step()
    return loss


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
