"""Residual networks with fused batch norms compute what they did."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from mocokit.model import fused
from mocokit.model.backbones import create_backbone
from mocokit.model.norm import SplitBatchNorm2d, SplitBatchNormAct2d, freeze_batch_norm, split_batch_norm
from mocokit.model.residual import FusedBasicBlock, FusedBottleneck, fuse_residual


def kinds(module):
    return {type(m) for m in module.modules()}


def trained_once(network, x, precision="fp32"):
    """Features, gradients and statistics of one step of ``network``, each as one float64 vector."""
    network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y = network(x.contiguous(memory_format=torch.channels_last))
    (y * torch.linspace(-1, 1, y.shape[1])).sum().backward()
    parts = [y.detach()], [p.grad for p in network.parameters()], list(network.buffers())
    return [torch.cat([t.flatten().double() for t in part]) for part in parts]


@pytest.mark.parametrize(
    ("name", "splits", "block"),
    [
        ("resnet18_narrow", 4, FusedBasicBlock),
        ("resnet18_narrow", 1, FusedBasicBlock),
        ("resnet26", 2, FusedBottleneck),
        ("resnet18d", 2, FusedBasicBlock),  # a stem of three convolutions, an average pool in shortcuts
        ("regnetx_002", 2, None),  # batch norms with the ReLU in them
        ("efficientnet_lite0", 2, None),  # and with another activation
    ],
)
def test_training_is_the_same(monkeypatch, name, splits, block):
    """Beside float64, too: in bfloat16, of which errors grow from layer to layer, no further from that than torch's."""
    monkeypatch.setattr(fused, "MANY", 2)
    torch.manual_seed(0)
    plain = split_batch_norm(create_backbone(name, 3, 32, zero_init_last=False), splits)
    ours = fuse_residual(copy.deepcopy(plain))
    if block is not None:
        assert block in kinds(ours)
        assert not kinds(ours) & {BasicBlock, Bottleneck}
    assert list(ours.state_dict()) == list(plain.state_dict())
    taken = fused.can_fuse
    for precision in ("fp32", "bf16"):
        errors = []
        for _ in range(4):
            x = torch.randn(16, 3, 32, 32)
            monkeypatch.setattr(fused, "can_fuse", taken)
            mine = trained_once(copy.deepcopy(ours), x, precision)
            monkeypatch.setattr(fused, "can_fuse", lambda *a: False)
            true = trained_once(copy.deepcopy(plain).double(), x.double())
            both = zip((mine, trained_once(copy.deepcopy(plain), x, precision)), strict=True)
            errors.append([[float((t - z).norm() / z.norm()) for t, z in zip(t, true, strict=True)] for (t,) in both])
        # The least of four batches: in one a sum so near to 0 that rounding takes it past a ReLU changes a gradient by
        # far more than rounding does, torch's as well as ours.
        ours_, theirs = torch.tensor(errors).amin(0)
        assert (ours_ < 1.5 * theirs + 1e-5).all(), (precision, ours_, theirs)


def test_evaluation_is_the_same_to_the_bit():
    torch.manual_seed(0)
    plain = create_backbone("resnet18_narrow", 3, 16)
    ours = fuse_residual(copy.deepcopy(plain))
    x = torch.randn(4, 3, 16, 16)
    for _ in range(3):
        ours(x)
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x), plain.eval()(x))


def test_what_is_between_its_layers_keeps_a_block_as_it_is():
    for name, options in (("seresnet18", {}), ("resnetblur18", {}), ("ecaresnet26t", {})):
        network = fuse_residual(create_backbone(name, 3, 32, **options))
        left = [m for m in network.modules() if type(m) in (BasicBlock, Bottleneck)]
        assert left, name
        assert network(torch.randn(4, 3, 32, 32)).isfinite().all()
    swish = BasicBlock(4, 4, act_layer=nn.SiLU)
    random = BasicBlock(4, 4, drop_path=nn.Dropout(0.5))
    folded = BasicBlock(4, 4)
    folded.bn1 = nn.Identity()
    assert [type(fuse_residual(block)) for block in (swish, random, folded)] == [BasicBlock] * 3


def test_frozen_statistics_stay_frozen():
    network = fuse_residual(freeze_batch_norm(create_backbone("resnet18_narrow", 3, 16)))
    assert not kinds(network) & {SplitBatchNorm2d, SplitBatchNormAct2d, FusedBasicBlock}


def test_the_stem_has_its_relu_once():
    network = fuse_residual(create_backbone("resnet18_narrow", 3, 16))
    assert type(network.bn1) is SplitBatchNormAct2d
    assert isinstance(network.bn1, BatchNormAct2d)
    assert type(network.bn1.act) is nn.ReLU
    assert type(network.act1) is nn.Identity


@pytest.mark.parametrize("splits", [1, 2])
def test_a_compiler_gets_the_plain_block(monkeypatch, splits):
    torch._dynamo.reset()
    monkeypatch.setattr(fused, "MANY", 2)
    graphs, calls = [], []
    network = fuse_residual(split_batch_norm(create_backbone("resnet18_narrow", 3, 8), splits))
    network.to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    expected = copy.deepcopy(network)(x)
    monkeypatch.setattr(fused, "normalise", lambda *a: calls.append(a))
    compiled = torch.compile(network, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-3, atol=1e-4)
    assert len(graphs) == 1
    assert not calls
