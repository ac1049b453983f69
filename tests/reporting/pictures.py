"""Images of reports made of arrays, without a store."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch

from mocokit.data.image_index import SPLITS
from mocokit.data.pixels import pad
from mocokit.evaluation.splits import Subset
from mocokit.reporting.images import ReportImages


def report_images(
    images: Sequence[np.ndarray],
    *,
    names: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    label_names: tuple[str, ...] | None = None,
) -> ReportImages:
    """Of images uint8 [C, H, W], those of the training split first, as `ReportImages.of` has them."""
    where = np.array(splits or ["train"] * len(images))
    parts = []
    for split in SPLITS:
        rows = np.flatnonzero(where == split)
        if not len(rows):
            continue
        canvas, sizes = pad([images[row] for row in rows])
        held = SimpleNamespace(
            batch=lambda asked, canvas=canvas: canvas[np.asarray(asked)],
            image=lambda row, canvas=canvas, sizes=sizes: canvas[row, :, : sizes[row, 0], : sizes[row, 1]],
            sizes=sizes.astype(np.int32),
            canvas=canvas.shape[2:],
            channels=canvas.shape[1],
            names=[names[row] if names else f"{row}.png" for row in rows],
            labels=None if labels is None else np.array(labels)[rows],
            split=split,
        )
        parts.append(Subset(held, torch.arange(len(rows))))  # type: ignore[arg-type]
    return ReportImages(tuple(parts), label_names, len(images))


def picture(seed: int, side: int = 32, channels: int = 1) -> np.ndarray:
    """Blobs of four by four pixels, uint8 [channels, side, side], all channels alike."""
    blobs = np.random.default_rng(seed).normal(128, 40, (1, side // 4, side // 4)).repeat(4, 1).repeat(4, 2)
    return np.clip(blobs, 0, 255).astype(np.uint8).repeat(channels, 0)
