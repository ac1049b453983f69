"""Features of the images of a source, streamed: decoded, encoded and put into rows of a feature file."""

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mocokit.config import EmbedConfig
from mocokit.data.decode_pool import Decoded, decode_for_model, read_all, worker_count
from mocokit.data.image_index import ImageIndex, Skipped, Source
from mocokit.data.notes import Notes
from mocokit.data.pillow import BadImage
from mocokit.data.pixels import pad
from mocokit.deploy.feature_file import feature_table
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import batch_size, encode


class Chunk(NamedTuple):
    """The results of a batch: of ``images``, those in ``rows`` and those in ``skipped``."""

    images: int
    rows: pa.Table
    skipped: list[Skipped]


def embed_images(
    encoder: Encoder,
    source: Source,
    index: ImageIndex,
    order: np.ndarray,
    start: int,
    config: EmbedConfig,
    notes: Notes | None = None,
) -> Generator[Chunk, None, None]:
    """Embed the images ``order[start:]``, positions in ``index``, batch by batch.

    How they are encoded depends on how many ``order`` holds, so a resumed call gives what a single one gives.

    Raises:
        UserError: the encoder gives numbers that are not finite, or too large for ``config.dtype``.
    """
    spec, rest = encoder.spec, order[start:]
    decoded = decode_for_model(
        read_all(source, rest.tolist()),
        image_size=spec.image_size,
        channels=spec.channels,
        intensity_range=spec.intensity_range,
        workers=worker_count(source, len(rest)) if config.workers is None else config.workers,
        max_pixels=source.max_pixels,
        noted=None if notes is None else lambda position, text: notes.add(text, index.names[rest[position]]),
    )
    size = batch_size(encoder.device, len(order), config.batch_size)
    pending: deque[tuple[np.ndarray, list[Decoded]]] = deque()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(rest), size):
            images = list(itertools.islice(decoded, size))
            pending.append((rest[first : first + size], images))
            pixels, sizes = pad([image for image in images if isinstance(image, np.ndarray)])
            yield torch.from_numpy(pixels), torch.from_numpy(sizes)

    split_of = np.empty(len(index.names), object)
    for split, indices in index.splits.items():
        split_of[indices] = split
    encoded = encode(encoder, batches(), images=len(order), precision=config.precision)
    with closing(decoded), closing(encoded):
        for features in encoded:
            chosen, images = pending.popleft()
            bad = {i: image for i, image in zip(chosen, images, strict=True) if isinstance(image, BadImage)}
            good = [i for i in chosen if i not in bad]
            rows = feature_table(_cast(features, config), _columns(index, split_of, encoder, good, features))
            yield Chunk(len(images), rows, [Skipped(index.names[i], str(image)) for i, image in bad.items()])


def _columns(
    index: ImageIndex, split_of: np.ndarray, encoder: Encoder, chosen: list[int], features: Tensor
) -> dict[str, list[Any]]:
    """The other columns: what the index and the classifier say about the ``chosen`` images."""
    labels: list[str | None] = [None] * len(chosen)
    if index.labels is not None and index.label_names is not None:
        labels = [index.label_names[value] if value >= 0 else None for value in index.labels[chosen].tolist()]
    columns: dict[str, list[Any]] = {
        "path": [index.names[i] for i in chosen],
        "split": split_of[chosen].tolist(),
        "label": labels,
    }
    if encoder.classes:
        probability, predicted = encoder.probabilities(features).max(dim=1)
        columns["predicted"] = [encoder.classes[value] for value in predicted]
        columns["probability"] = probability.tolist()
    return columns


def _cast(features: Tensor, config: EmbedConfig) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast: np.ndarray = features.numpy().astype(config.dtype)
    if not np.isfinite(cast).all():
        raise UserError("--dtype float16: features above 65,504 do not fit; use --dtype float32")
    return cast
