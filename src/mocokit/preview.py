"""Look at images, at the views that pretraining makes of them, and at the metrics of a run; for notebooks."""

import operator
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mocokit.auto.defaults import image_size_chooser
from mocokit.config import FIELDS
from mocokit.data.sources import open_source
from mocokit.data.store import Store, check_trainable, open_store
from mocokit.errors import UserError
from mocokit.machine import pick_device
from mocokit.options import expanded, validate
from mocokit.reporting.views import two_views
from mocokit.rundir import RunDirectory
from mocokit.runs.configuration import complete_config
from mocokit.runs.request import Request, RunData, open_data
from mocokit.training.log import read_rows


class Images:
    """The decoded images of one split; ``images[i]`` is uint8 [H, W], or [H, W, C] if they are not gray.

    Attributes:
        data: what the user named.
        store: all its images.
        split: the name of this split.
        names: the path of each image inside the data.
        labels: int64 [N], indices of `label_names`, -1 of an image without a label; None without labels.
        label_names: the classes; None without labels.
    """

    def __init__(self, data: str, store: Store, split: str) -> None:
        self.data, self.store, self.split, self._images = data, store, split, store.splits[split]
        self.names, self.labels, self.label_names = self._images.names, self._images.labels, store.label_names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> np.ndarray:
        row = range(len(self))[operator.index(row)]  # of no slice: images have sizes of their own
        return _channels_last(self._images.image(row))


def open_images(
    data: str, *, split: str = "train", limit: int | None = None, image_size: int | None = None, tiles: int = 0
) -> Images:
    """Decode images as pretraining does: once, at most twice as large as ``image_size``; then read them from the cache.

    Args:
        data: as for `mocokit.pretrain`.
        split: "train", "val" or "test".
        limit: use a random, class-balanced subset of that many training images.
        image_size: side of the encoder's images in pixels; None chooses by images and device, as `mocokit.pretrain`.
        tiles: cut images into tiles of about so many of their pixels a side; 0: leave them whole.

    Raises:
        UserError: the images can't be used, there is no such split, or a number is out of range.
    """
    given = validate({"tiles": tiles, "limit": limit, "image_size": image_size}, FIELDS)
    size = given.get("image_size") or image_size_chooser(pick_device(None))
    data = expanded(str(data))
    store = open_store(open_source(data, tiles=given.get("tiles", 0)), image_size=size, limit=given.get("limit"))
    if split not in store.splits:
        raise UserError(f"{data}: no split {split!r}; choose one of {', '.join(store.splits)}")
    return Images(data, store, split)


def draw_views(
    data: str | Images, *, count: int = 8, **options: Any
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Both views of the first images, as pretraining with the same options would draw them.

    Args:
        data: as for `mocokit.pretrain`, or what `open_images` returned, to which nothing is added or taken.
        count: number of images.
        options: any option of `mocokit.pretrain`, such as ``recipe``, ``crop_min`` or ``seed``.

    Returns:
        The images, as `Images` gives them; the first and the second view of each: uint8 [count, S, S] or
        [count, S, S, C], S being the image size.

    Raises:
        UserError: the images can't be used, or a wrong option.
    """
    given = validate({**options, "data": data.data if isinstance(data, Images) else data}, FIELDS)
    images = data if isinstance(data, Images) else Images(given["data"], open_data(Request.of(given)).store, "train")
    store, split = images.store, images.store.splits[images.split]
    check_trainable(store.splits, store.name)
    # What does not matter to the views is set, so that nothing is timed and a few images are enough.
    given = {"batch_size": 2, "precision": "fp32", "compile": False} | given
    config = complete_config(Request.of(given), RunData(store, split), time.perf_counter()).config
    rows = np.arange(min(count, len(images)))
    first, second = map(_channels_last, two_views(split, rows, config))
    return [images[row] for row in rows.tolist()], first, second


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """[..., C, H, W] -> [..., H, W, C], or [..., H, W] for one channel."""
    return pixels[..., 0, :, :] if pixels.shape[-3] == 1 else np.moveaxis(pixels, -3, -1)


def read_metrics(run: str | Path) -> dict[str, np.ndarray]:
    """The columns of a run's ``metrics.csv``: float64 [rows], NaN where nothing was measured.

    Raises:
        UserError: ``run`` has no metrics.
    """
    rows = read_rows(RunDirectory(Path(os.path.expanduser(run))).metrics)
    if not rows:
        raise UserError(f"{run}: no metrics here; name the directory of a run that has started")
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
