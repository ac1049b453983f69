"""Stores of made images for the tests of this folder."""

from functools import partial
from pathlib import Path

import numpy as np

from mocokit.auto.defaults import choose_image_size
from mocokit.data.store import Store, open_store
from tests.helpers import write_images


def open_images(path: Path, **options: object) -> Store:
    return open_store(str(path), **{"image_size": partial(choose_image_size, cap=64), **options})  # type: ignore[arg-type]


def all_pixels(store: Store, split: str = "train") -> np.ndarray:
    return store.splits[split].batch(np.arange(len(store.splits[split])))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def ragged(folder: Path, prefix: str = "") -> Path:
    for number in range(12):
        write_images(folder, [f"{prefix}{number:02d}.png"], height=5 + number, width=20 - number)
    return folder


def with_bad_images(folder: Path, good: int, bad: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder, [f"{number:03d}.png" for number in range(good)])
    for number in range(bad):
        (folder / f"bad{number}.jpg").write_text("not a picture")
    return folder
