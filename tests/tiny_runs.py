"""Short pretraining runs on made images, in this process or as a user starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import class_folders, encode, noise

LEAN = Path(__file__).parent / "lean"  # before all that is installed, in processes that tests start
TINY = {
    "backbone": "resnet18_narrow",
    "image_size": 8,
    "batch_size": 8,
    "queue_size": 16,
    "bn_splits": 2,
    "epochs": 3,
    "monitor_every": 1,
    "log_every": 2,
    "lr": 0.03,
    "symmetric": False,
    "device": "cpu",
    "report": False,
    "workers": 0,
}


def flags_of(options: Mapping[str, object]) -> list[str]:
    """Options of the Python API as flags of the command line."""
    words = {name: name.replace("_", "-") for name in options}
    return [
        f"--{'' if value else 'no-'}{words[name]}" if isinstance(value, bool) else f"--{words[name]}={value}"
        for name, value in options.items()
    ]


FLAGS = flags_of(TINY)


def tiny_data(folder: Path, **options: int) -> Path:
    """Forty training images in two classes and a small test split."""
    return class_folders(folder / "data", train=20, test=3, **options)


def coloured_data(folder: Path, classes: int = 3, train: int = 24, test: int = 16) -> Path:
    """train/ and test/ class folders of noise whose colour hints at the class."""
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        for value in range(classes):
            tint = np.roll([50, 0, 0], value)
            for number in range(count):
                path = folder / split / f"class{value}" / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = noise(1000 * seed + 100 * value + number, 12, 10) // 4 * 3 + tint
                path.write_bytes(encode(pixels.astype(np.uint8)))
    return folder


@dataclass(frozen=True)
class TinyRun:
    """A finished run: what it learned from, its directory, its result."""

    data: Path
    path: Path
    result: dict[str, Any]


def command(*arguments: object) -> list[str]:
    """``mocokit`` with these arguments, in this environment's Python."""
    return [sys.executable, "-m", "mocokit", *map(str, arguments)]


def mocokit(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; one thread, so that sums come out in one order."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command(*arguments), capture_output=True, text=True, env=environment, timeout=300, **options
    )


def meeting(processes: int, rank: int, port: int) -> dict[str, str]:
    """The environment of one of several processes that meet on this machine, as torchrun sets it."""
    told = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return os.environ | {name: str(value) for name, value in told.items()}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
