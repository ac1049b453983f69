"""Short pretraining runs on made images, in this process or as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import class_folders

TINY = {
    "backbone": "resnet18_narrow",
    "batch_size": 8,
    "queue_size": 16,
    "bn_splits": 2,
    "epochs": 3,
    "monitor_every": 1,
    "log_every": 2,
    "lr": 0.03,
    "symmetric": False,
    "device": "cpu",
    "workers": 0,
}
FLAGS = [f"--{name.replace('_', '-')}={str(value).lower()}" for name, value in TINY.items()]


def tiny_data(folder: Path, **options: int) -> Path:
    """Forty training images in two classes and a small test split."""
    return class_folders(folder / "data", train=20, test=3, **options)


def command(*arguments: object) -> list[str]:
    """``mocokit`` with these arguments, in this environment's Python."""
    return [sys.executable, "-m", "mocokit", *map(str, arguments)]


def mocokit(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; one thread, so that sums come out in one order."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command(*arguments), capture_output=True, text=True, env=environment, timeout=300, **options
    )
