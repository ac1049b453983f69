"""Projection heads: from the backbone's features to the embedding that is contrasted."""

from torch import nn


def create_head(kind: str, in_dim: int, out_dim: int) -> nn.Module:
    """``linear`` as in MoCo v1, or ``mlp`` with one hidden layer as wide as the features (v2, section 3.1)."""
    if kind == "linear":
        return nn.Linear(in_dim, out_dim)
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(), nn.Linear(in_dim, out_dim))
