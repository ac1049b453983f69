"""Stores of made images, and what a report takes."""

from pathlib import Path

import numpy as np
import torch

from mocokit.data.store import open_store
from mocokit.evaluation.splits import split_labelled
from mocokit.reporting.images import ReportImages
from tests.helpers import encode, noise


def made_images(folder: Path, files: dict[str, np.ndarray], cache: Path, held_out: bool = False) -> ReportImages:
    """Files by name, as a report sees them."""
    for name, pixels in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels))
    cache.mkdir(exist_ok=True)
    store = open_store(str(folder), image_size=16, cache=cache)
    splits = split_labelled(store, 0, 0.25) if held_out else None
    return ReportImages.of(store, None if isinstance(splits, str) else splits, seed=0)


def noisy_files(count: int, *folders: str) -> dict[str, np.ndarray]:
    return {f"{f}/{n}.png": noise(97 * i + n, 12 + n % 3, 10) for i, f in enumerate(folders) for n in range(count)}


def blobs(per: int, centres: int, dim: int = 8, seed: int = 0, spread: float = 0.1) -> tuple[torch.Tensor, np.ndarray]:
    """Features around ``centres`` far from each other, and which each is of."""
    rng = np.random.default_rng(seed)
    middle = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:centres]
    of = np.repeat(np.arange(centres), per)
    return torch.from_numpy((middle[of] + spread * rng.normal(size=(len(of), dim))).astype(np.float32)), of
