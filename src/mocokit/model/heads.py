"""Heads between features and embedding: projection heads of both encoders, v3's prediction head of the query's."""

import itertools

from torch import nn


def create_head(kind: str, in_dim: int, hidden: int, out_dim: int) -> nn.Module:
    """The projection head, from features [B, in_dim] to embedding [B, out_dim].

    ``linear`` is v1's; ``mlp`` with one hidden layer v2's (section 3.1); ``v3-resnet`` has one, ``v3-vit`` two hidden
    layers and batch norm after each layer (v3, implementation details).
    """
    if kind == "linear":
        return nn.Linear(in_dim, out_dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Linear(hidden, out_dim))
    if kind == "v3-resnet":
        return _mlp_with_batch_norm(in_dim, hidden, out_dim, last_norm=True)
    return _mlp_with_batch_norm(in_dim, hidden, hidden, out_dim, last_norm=True)


def create_predictor(kind: str, hidden: int, dim: int) -> nn.Module:
    """The prediction head of v3, from embedding to embedding [B, dim]; with the heads of v1 and v2 there is none."""
    if kind in ("linear", "mlp"):
        return nn.Identity()
    return _mlp_with_batch_norm(dim, hidden, dim, last_norm=kind == "v3-vit")


def _mlp_with_batch_norm(*dims: int, last_norm: bool) -> nn.Sequential:
    """Linear layers between ``dims``, batch norm and ReLU after all but the last; batch norm without scale and
    shift after the last. No biases: batch norm would take them away."""
    layers: list[nn.Module] = []
    for in_dim, out_dim in itertools.pairwise(dims):
        layers += [nn.Linear(in_dim, out_dim, bias=False), nn.BatchNorm1d(out_dim), nn.ReLU(inplace=True)]
    del layers[-2:]
    if last_norm:
        layers.append(nn.BatchNorm1d(dims[-1], affine=False))
    return nn.Sequential(*layers)
