"""What this machine is: devices, and the versions that results depend on."""

import platform
from importlib.metadata import version

import torch

from mocokit.errors import UserError


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("mocokit", "torch", "torchvision", "pytorch-lightning", "timm", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def pick_device(asked: str | None) -> str:
    """The device to compute on: the one asked for, or the fastest here.

    Raises:
        UserError: this machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked is None:
        return next(name for name, available in there.items() if available)
    if not there[asked]:
        raise UserError(
            f"--device {asked}: PyTorch {torch.__version__} finds no such device here; use --device cpu"
        )
    return asked
