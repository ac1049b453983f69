"""What this machine is: devices, and the versions that results depend on."""

import platform
from importlib.metadata import version

import torch

import mocokit
from mocokit.config import DeviceName
from mocokit.errors import UserError


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), "mocokit": mocokit.__version__} | {
        name: version(name) for name in names
    }


def pick_device(asked: str | None) -> DeviceName:
    """The device to compute on: the one asked for, or the fastest here.

    Raises:
        UserError: this machine has no such device.
    """
    there: dict[DeviceName, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked is None:
        return next(name for name, available in there.items() if available)
    for name, available in there.items():
        if name == asked and available:
            return name
    raise UserError(
        f"--device {asked}: PyTorch {torch.__version__} finds no such device here; use --device cpu"
    )
