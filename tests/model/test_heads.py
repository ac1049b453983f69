import pytest
import torch
from torch import nn

from mocokit.model.heads import create_head, create_predictor


def layers(module):
    return [type(layer).__name__ for layer in (module if isinstance(module, nn.Sequential) else [module])]


HIDDEN, LAST = ["Linear", "BatchNorm1d", "ReLU"], ["Linear", "BatchNorm1d"]


@pytest.mark.parametrize(
    ("kind", "head", "predictor"),
    [
        ("linear", ["Linear"], ["Identity"]),
        ("mlp", ["Linear", "ReLU", "Linear"], ["Identity"]),
        ("v3-resnet", HIDDEN + LAST, [*HIDDEN, "Linear"]),
        ("v3-vit", HIDDEN * 2 + LAST, HIDDEN + LAST),
    ],
)
def test_layers_are_the_papers(kind, head, predictor):
    made = create_head(kind, 6, 10, 4), create_predictor(kind, 10, 4)
    assert layers(made[0]) == head
    assert layers(made[1]) == predictor
    embedding = made[0](torch.randn(8, 6))
    assert embedding.shape == made[1](embedding).shape == (8, 4)


@pytest.mark.parametrize("kind", ["v3-resnet", "v3-vit"])
def test_the_last_batch_norm_standardises_and_has_no_scale(kind):
    head = create_head(kind, 6, 10, 4)
    z = head(torch.randn(64, 6) * 5 + 3)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(dim=0, unbiased=False), torch.ones(4), atol=1e-2, rtol=0)
    assert not list(head[-1].parameters())


def test_hidden_layers_have_their_width():
    assert [m.weight.shape for m in create_head("v3-vit", 6, 10, 4) if isinstance(m, nn.Linear)] == [
        (10, 6),
        (10, 10),
        (4, 10),
    ]
