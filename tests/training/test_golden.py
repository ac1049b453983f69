"""The losses of a short fixed run against those committed in ``tests/golden/loss.json``.

A change here means that training computes something else than before. If that is intended, regenerate with
``OMP_NUM_THREADS=1 python -m tests.training.test_golden`` and say why in the commit.
"""

import csv
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import mocokit
from tests.tiny_runs import coloured_data

GOLDEN = Path(__file__).parents[1] / "golden" / "loss.json"
OPTIONS = {
    "backbone": "resnet18_narrow",
    "image_size": 8,
    "head": "mlp",
    "head_dim": 32,
    "bn_splits": 2,
    "batch_size": 12,
    "queue_size": 32,
    "momentum": 0.99,
    "temperature": 0.1,
    "symmetric": False,
    "views": "v2",
    "crop_min": 0.2,
    "flip_p": 0.5,
    "jitter_strength": 1.0,
    "gray_p": 0.2,
    "blur_p": 0.5,
    "steps": 12,
    "lr": 0.03,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup_steps": 2,
    "seed": 0,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "monitor_every": 0,
    "log_every": 1,
}


def losses(folder: Path) -> list[float]:
    """The loss of each step, from a run below ``folder``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mocokit.pretrain(str(coloured_data(folder / "data")), out=str(folder / "run"), **OPTIONS)
    finally:
        torch.set_num_threads(threads)
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def test_losses_are_those_committed(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    assert golden["options"] == OPTIONS
    np.testing.assert_allclose(losses(tmp_path), golden["loss"], rtol=1e-3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        content = {
            "made_by": "python -m tests.training.test_golden",
            "made_with": f"torch {torch.__version__}, {platform.machine()}, {sys.platform}",
            "options": OPTIONS,
            "loss": losses(Path(name)),
        }
    GOLDEN.write_text(json.dumps(content, indent=2) + "\n")
