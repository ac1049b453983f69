"""Labels and splits of a file laid over stored images, which are not decoded again for them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mocokit.data.build import subset
from mocokit.data.image_index import SPLITS, ImageIndex, Source, main_split
from mocokit.data.labels_file import LabelsFile
from mocokit.data.long_tail import long_tail
from mocokit.data.notes import count, listed
from mocokit.data.store import ImageSet, Store, check_trainable, open_store
from mocokit.data.tiles import origin_of
from mocokit.errors import UserError

PARENT = "parent"  # of an image: its folder


def open_labelled(
    source: Source,
    labels: LabelsFile | None,
    *,
    limit: int | None,
    seed: int,
    to_train: bool,
    imbalance: float | None = None,
    **options: Any,
) -> Store:
    """As `open_store`, with the labels and splits of a file in the place of the folders', if there is one; with an
    ``imbalance`` of a subset of `mocokit.data.long_tail`.

    With either all images are decoded, whatever the ``limit``, so that another one finds them in the cache.

    Raises:
        UserError: the images or the file can't be read, or no such subset fits.
    """
    if labels is None and imbalance is None:
        return open_store(source, limit=limit, seed=seed, to_train=to_train, **options)
    store = open_store(source, seed=seed, **options)
    store = store if labels is None else lay_over(store, labels)
    if to_train:
        check_trainable(store.splits, source.name)
    return store if limit is imbalance is None else _limited(store, limit, imbalance, seed)


def grouped(store: Store, by: str | None, labels: LabelsFile | None, tiled: bool = False) -> Store:
    """The store with groups of images that must not be divided between training and test: those in one folder (``by``
    "parent"), or with the same value in a column of the file of labels that was laid over it; none if ``by`` is None.
    If they are tiles, those of one image are in one group whatever ``by``.

    Raises:
        UserError: there is no such column.
    """
    if by is None:
        for images in store.splits.values() if tiled else ():
            images.groups = _numbered([origin_of(name) for name in images.names])
        return store
    if by != PARENT and (labels is None or by not in labels.columns):
        there = f"of {labels.place}: {listed(list(labels.columns))}" if labels else "of a file, which --labels names"
        raise UserError(f"--split-by {by}: is neither {PARENT}, the folder of an image, nor a column {there}")
    alone: list[str] = []
    for images in store.splits.values():
        if by == PARENT:
            keys = [name.rpartition("/")[0] for name in images.names]
        else:
            assert labels is not None
            assert images.table_rows is not None
            values = ["" if value is None else str(value) for value in labels.columns[by].to_pylist()]
            keys = [values[row] if row >= 0 else "" for row in images.table_rows.tolist()]
            empty = [row for row, key in enumerate(keys) if not key]
            alone += [images.names[row] for row in empty]
            keys = [key or f"\0{origin_of(name)}" for key, name in zip(keys, images.names, strict=True)]
        if tiled:  # a table may say different things of tiles of one image: the first counts
            first: dict[str, str] = {}
            keys = [first.setdefault(origin_of(name), key) for key, name in zip(keys, images.names, strict=True)]
        images.groups = _numbered(keys)
    if not alone:
        return store
    line = f"{count(len(alone), 'image has', 'images have')} no {by}, so each is a group; the first is {alone[0]}"
    return replace(store, notes=(*store.notes, line))


def _numbered(keys: list[str]) -> np.ndarray:
    """The same number for the same key, int64 [len(keys)]."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def lay_over(store: Store, labels: LabelsFile) -> Store:
    """The store with the labels and splits of a file; a UserError if that is about other images, or says different
    things of one."""
    names = [name for part in store.splits.values() for name in part.names]
    row_of, lines = labels.match([*names, *(skipped.name for skipped in store.skipped)])
    return _laid(store, labels, names, row_of[: len(names)], lines)


def lay_over_index(index: ImageIndex, labels: LabelsFile) -> ImageIndex:
    """As `lay_over`, for images that are not decoded yet; what is in no split stays so."""
    row_of, lines = labels.match([*index.names, *(refused.name for refused in index.refused)])
    row_of = row_of[: len(index.names)]
    split_of = np.full(len(index.names), -1)
    for split, rows in index.splits.items():
        split_of[rows] = SPLITS.index(split)
    values, moved = _said(labels, row_of, split_of)
    moved[split_of < 0] = -1
    splits = {split: np.flatnonzero(moved == n) for n, split in enumerate(SPLITS) if n in moved}
    known = values if labels.label_names else None
    notes = (*index.notes, *labels.notes, *lines)
    return replace(index, splits=splits, labels=known, label_names=labels.label_names, notes=notes)


def _said(labels: LabelsFile, row_of: np.ndarray, split_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and splits of images by the rows ``row_of`` of a file; of one without, -1 and what ``split_of`` says."""
    known = row_of >= 0
    values = np.where(known, labels.labels[row_of], -1)
    if labels.splits is None:
        return values, split_of
    said = labels.splits[row_of]
    return values, np.where(known & (said >= 0), said, split_of)


def lay_over_sample(store: Store, labels: LabelsFile, images: Sequence[str]) -> Store:
    """As `lay_over`, for a store of some of the ``images`` that a run streams; a UserError if the file has splits."""
    if labels.splits is not None:
        raise UserError(
            "--stream reads the training images by their folders, so the labels can't move them to another split; "
            "leave the column of splits out with --labels-columns image,label"
        )
    row_of, lines = labels.match([*images])
    place = {name: row for row, name in enumerate(images)}
    names = [name for part in store.splits.values() for name in part.names]
    laid = _laid(store, labels, names, row_of[[place[name] for name in names]], lines)
    return replace(laid, label_notes=tuple(f"in the sample: {line}" for line in laid.label_notes))


def _laid(store: Store, labels: LabelsFile, names: list[str], row_of: np.ndarray, lines: list[str]) -> Store:
    """The store with what the rows ``row_of`` of a file, -1 for none, say of its images ``names``."""
    sets = list(store.splits.values())
    split_of = np.repeat([SPLITS.index(part.split) for part in sets], [len(part) for part in sets])
    values, split_of = _said(labels, row_of, split_of)
    rows = np.concatenate([part.rows for part in sets])
    splits = {split: np.flatnonzero(split_of == n) for n, split in enumerate(SPLITS) if n in split_of}
    index = ImageIndex(names, splits, values, labels.label_names)
    parts = {split: ImageSet(store.path, split, rows[these], values[these]) for split, these in splits.items()}
    for split, these in splits.items():
        parts[split].table_rows = row_of[these]
    laid = replace(
        store,
        splits=parts,
        label_names=labels.label_names,
        notes=(*store.notes, *labels.notes, *lines),
        label_notes=tuple(index.label_notes()) if labels.label_names else (),
    )
    return _identified(laid, store)


def _limited(store: Store, limit: int | None, imbalance: float | None, seed: int) -> Store:
    """The store with a random subset of its main split, class-balanced without an ``imbalance``."""
    split = main_split(store.splits)
    images = store.splits[split]
    labels = np.full(len(images), -1) if images.labels is None else images.labels
    if imbalance is not None:
        chosen = long_tail(labels, limit, imbalance, seed)
    else:
        assert limit is not None
        chosen = subset(np.arange(len(images)), labels, limit, seed)
    part = ImageSet(store.path, split, images.rows[chosen], labels[chosen])
    part.table_rows = None if images.table_rows is None else images.table_rows[chosen]
    limited = replace(store, splits=store.splits | {split: part})
    return _identified(replace(limited, label_notes=_label_notes(limited)), store)


def _label_notes(store: Store) -> tuple[str, ...]:
    """What is odd about the labels of the images that a store has."""
    if store.label_names is None:
        return store.label_notes
    sets = store.splits.values()
    splits = np.split(np.arange(sum(map(len, sets))), np.cumsum([len(part) for part in sets])[:-1])
    labels = np.concatenate([part.labels for part in sets if part.labels is not None])
    names = [name for part in sets for name in part.names]
    index = ImageIndex(names, dict(zip(store.splits, splits, strict=True)), labels, store.label_names)
    return tuple(index.label_notes())


def _identified(store: Store, before: Store) -> Store:
    """The store with fingerprints of the rows and labels that it has now; it has the pixels of ``before``."""
    digest = hashlib.blake2b(repr((before.train_fingerprint, store.label_names)).encode(), digest_size=16)
    for split, images in store.splits.items():
        for array in (images.rows, images.labels):
            digest.update(repr((split, len(images))).encode() + array.astype("<i8").tobytes())  # type: ignore[union-attr]
    train = store.main.rows
    same = np.array_equal(train, before.main.rows)
    of_train = hashlib.blake2b(before.train_fingerprint.encode() + train.astype("<i8").tobytes(), digest_size=16)
    return replace(
        store,
        fingerprint=digest.hexdigest(),
        train_fingerprint=before.train_fingerprint if same else of_train.hexdigest(),
    )
