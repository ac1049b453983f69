"""Images as NumPy arrays, in .npy and .npz files or in memory: sources whose pixels need no decoding."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from PIL import Image

from mocokit.data.archives import file_fingerprint
from mocokit.data.image_index import SPLITS, ImageIndex, reading
from mocokit.data.labels import join_labels, label_values, number_labels
from mocokit.data.names import data_name
from mocokit.data.pillow import MAX_PIXELS, BadImage, decode_pillow
from mocokit.errors import UserError

ARRAY_SUFFIXES = (".npy", ".npz")

_KINDS = "buif"  # of dtypes that can be pixels: bool, whole numbers, floats
_KEYS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))  # of MedMNIST and of Keras
_PICTURE_SIDE = 16  # at least, of an array [H, W, 3] that is taken for one picture, not for H images 3 pixels wide
_Labels: TypeAlias = Any  # `pa.Array | str | None`: of a split's images; or why they are not used; or there are none
_SHAPES = "[N, H, W] or [N, H, W, C]"


def pixels(image: np.ndarray) -> np.ndarray:
    """One image [H, W] or [H, W, C] as [C, H, W], C-contiguous: uint8 stays, other numbers become float32; NaN, which
    is no data, is left to `pillow.filled`.

    Raises:
        BadImage: no pixels, not numbers, or infinite ones.
    """
    if not isinstance(image, np.ndarray):
        raise BadImage(f"a {type(image).__name__}, where an array, an image of Pillow or a path is expected")
    if image.ndim not in (2, 3) or not image.size or image.dtype.kind not in _KINDS:
        raise BadImage(f"{image.dtype} of shape {list(image.shape)} where [H, W] or [H, W, C] is expected")
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        planes = np.ascontiguousarray(planes, dtype=np.uint8 if planes.dtype == np.uint8 else np.float32)
    if np.isinf(planes).any():
        raise BadImage("pixels that are infinite or not a number")
    return planes


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images of ``shape`` are more likely [N, C, H, W]: as images with their channels last they would be four
    pixels high at most, and have more channels than that."""
    return len(shape) == 4 and shape[1] <= 4 < shape[3]


def is_one_picture(shape: tuple[int, ...]) -> bool:
    """Whether [H, W, 3 or 4] is more likely one picture than H images that are 3 or 4 pixels wide."""
    return len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) >= _PICTURE_SIDE


class ImageListSource:
    """A sequence of images, all to train on: arrays as for `pixels`, PIL images, or paths of files."""

    name = "images"
    max_pixels = MAX_PIXELS
    decoded = True  # also for files: this process may have threads, so it must not fork

    def __init__(self, images: Sequence[Any]) -> None:
        self.images = images

    def fingerprint(self) -> str:
        """The same for all: such stores are used once."""
        return "memory"

    def read_index(self) -> ImageIndex:
        """A file is named by its path, other images by their position."""
        images = enumerate(self.images)
        names = [str(image) if isinstance(image, str | Path) else f"image {row}" for row, image in images]
        return ImageIndex(names, {"train": np.arange(len(names))})

    def read(self, index: int) -> bytes | np.ndarray:
        image = self.images[index]
        try:
            if isinstance(image, str | Path):
                return Path(image).read_bytes()
            if isinstance(image, Image.Image):
                return np.ascontiguousarray(decode_pillow(image, None))
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from error
        return pixels(image)


class ArraySource:
    """An .npy file of images, which is memory-mapped, or an .npz file, whose arrays are loaded into memory.

    Images are [N, H, W] or [N, H, W, C], of any real dtype and any number of channels. In an .npz they are called
    ``train_images``, ``val_images``, ``test_images`` or ``x_train``, ..., with labels ``train_labels`` or ``y_train``;
    or they are the only such array, with ``labels`` or ``y``. Labels are whole numbers or text, one an image.
    """

    decoded = True
    max_pixels = MAX_PIXELS

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = data_name(path, path.stem)
        self._unused: list[str] = []  # a line on arrays that are not

    def fingerprint(self) -> str:
        return file_fingerprint(self.path)

    def read_index(self) -> ImageIndex:
        """Open the arrays; UserError if the file is damaged, or holds Python objects or no images."""
        with reading(self.path, " as a NumPy file"):
            parts, columns = self._npz() if self.path.suffix.lower() == ".npz" else self._npy()
        self._parts = list(parts.values())
        self._starts = np.cumsum([0, *map(len, self._parts)])
        prefixes = [f"{split}/" * (len(parts) > 1) for split in parts]
        names = [
            f"{prefix}{row:06d}" for prefix, part in zip(prefixes, self._parts, strict=True) for row in range(len(part))
        ]
        splits = dict(zip(parts, np.split(np.arange(len(names)), self._starts[1:-1]), strict=True))
        found = [None if isinstance(column, str) else column for column in columns]
        labels, label_names, more = number_labels(join_labels(found, map(len, self._parts)), None, self.path)
        notes = [column for column in columns if isinstance(column, str)] + self._unused
        return ImageIndex(names, splits, labels, label_names, notes=tuple(notes + more))

    def read(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return pixels(self._parts[part][index - self._starts[part]])

    def _npy(self) -> tuple[dict[str, np.ndarray], list[_Labels]]:
        with np.errstate(over="ignore"):  # of a shape that is no true one, which is refused
            array = npy.open_memmap(self.path, mode="r")
        self._check("its array", array)
        return {"train": array}, [None]

    def _npz(self) -> tuple[dict[str, np.ndarray], list[_Labels]]:
        images: dict[str, np.ndarray] = {}
        labels: list[_Labels] = []
        stated = _stated(self.path)
        keys = self._keys(stated)
        if left := set(stated) - {name for pair in keys.values() for name in pair}:
            unused = ", ".join(f"{name} {_kind(array)}" for name, array in stated.items() if name in left)
            self._unused = [f"arrays not used: {unused}; usual names are train_images, train_labels, test_images, …"]
        with np.load(self.path, allow_pickle=False) as arrays:
            for split, (key, label_key) in keys.items():
                self._check(key, stated[key])
                images[split] = arrays[key]
                labels.append(None)
                if label_key in stated:
                    self._check_labels(label_key, stated[label_key], len(images[split]))
                    labels[-1] = _label_values(label_key, arrays[label_key])
        return images, labels

    def _keys(self, stated: dict[str, np.ndarray]) -> dict[str, tuple[str, str]]:
        """The names of images and labels of each split."""
        for images, labels in _KEYS:
            splits = {s: (images.format(s), labels.format(s)) for s in SPLITS if images.format(s) in stated}
            if splits:
                return splits
        found = ["images"] if "images" in stated else [key for key, array in stated.items() if _are_images(array)]
        if len(found) != 1:
            there = ", ".join(f"{key} {_kind(array)}" for key, array in stated.items()) or "nothing"
            raise UserError(
                f"{self.path} holds {'several arrays of' if found else 'no'} images {_SHAPES}: {there[:300]}; "
                "call them images, or train_images and test_images"
            )
        return {"train": (found[0], "y" if "y" in stated else "labels")}

    def _check(self, key: str, array: np.ndarray) -> None:
        """Raise UserError unless these are images, with their channels last."""
        if not _are_images(array):
            objects = ", Python objects, which could run code and are not loaded" * array.dtype.hasobject
            raise UserError(f"{self.path}: {key} is {_kind(array)}{objects}, where images {_SHAPES} are expected")
        if is_one_picture(array.shape):
            raise UserError(
                f"{self.path}: {key} {_kind(array)} seems to be one picture, where {_SHAPES} is expected; "
                "stack the pictures with numpy.stack, or save array[None] for this one"
            )
        if channels_first(array.shape):
            raise UserError(
                f"{self.path}: {key} {_kind(array)} seems to have its channels first, where {_SHAPES} is expected; "
                "save numpy.moveaxis(array, 1, -1)"
            )

    def _check_labels(self, key: str, array: np.ndarray, count: int) -> None:
        """Raise UserError unless there is something for each of the ``count`` images."""
        place = f"{self.path}: {key} is {_kind(array)}"
        if array.dtype.hasobject:
            raise UserError(f"{place}; Python objects are not loaded; save array.astype(str)")
        if array.shape[:1] != (count,):
            raise UserError(f"{place}, which is not one for each of {count:,} images")


def _are_images(array: np.ndarray) -> bool:
    return array.ndim in (3, 4) and array.dtype.kind in _KINDS and array.size > 0


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _label_values(key: str, array: np.ndarray) -> _Labels:
    """Labels as `label_values` gives them; several labels, or figures, are no classes."""
    unused = f"{key} {_kind(array)} is not used"
    if array.size != len(array) or array.dtype.kind not in "biufUS":
        return f"{unused}: one number or text an image is expected"
    values = label_values(pa.array(array.reshape(-1).astype(array.dtype.newbyteorder("="))))
    return f"{unused}: {values}" if isinstance(values, str) else values


def _stated(path: Path) -> dict[str, np.ndarray]:
    """Arrays without content, as the headers in an .npz file state them; ValueError if one states more than its
    member holds, for which NumPy would allocate memory before it reads."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
                size = math.prod(shape) * (0 if dtype.hasobject else dtype.itemsize)
                if not 0 <= size <= member.file_size - file.tell():
                    raise ValueError(f"it ends before its {list(shape)} numbers")
            arrays[member.filename.removesuffix(".npy")] = np.broadcast_to(np.empty((), dtype), shape)
    return arrays
