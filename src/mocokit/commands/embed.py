"""``mocokit embed RUN DATA -o FILE``: the features of every image, streamed from the source to a table on disk."""

import itertools
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mocokit.commands.environment import pick_device
from mocokit.commands.results import record
from mocokit.config import EmbedConfig
from mocokit.console import progress, say
from mocokit.cores import limit_threads, usable_cores
from mocokit.data.build import check_skipped
from mocokit.data.decode import BadImage
from mocokit.data.image_index import ImageIndex, Skipped, Source
from mocokit.data.sources import open_source, read_all
from mocokit.data.store import write_skipped
from mocokit.data.stream import stream
from mocokit.data.workers import Decoded, worker_count
from mocokit.deploy.encoder import load
from mocokit.deploy.features import (
    BLOCK_ROWS,
    Rows,
    check_format,
    encoder_fingerprint,
    printable,
    sidecars,
    write_features,
)
from mocokit.deploy.parts import Arrays, Parts
from mocokit.errors import Interrupted, UserError
from mocokit.memory import keep_freed_memory
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import MANY
from mocokit.options import fields_of, validate

LEAST_AT_ONCE = 32  # images that one core encodes at once


def embed(run: str, data: str, output: str, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Write the features of all images to a file, in the order of their paths.

    An interrupted call goes on where it was when it is made again. Images that can't be used are listed in
    ``OUTPUT.skipped.csv``.

    Args:
        run: a run directory or an encoder file; a fine-tuned one also gives ``predicted`` and ``probability``.
        data: as for `mocokit.pretrain`; all its splits are embedded.
        output: .parquet, .npz or .npy; see `mocokit.deploy.features`.
        overwrite: replace an existing output.
        options: any other field of `mocokit.config.EmbedConfig`.

    Returns:
        ``path``, ``rows``, ``dim``, ``skipped`` (number of images), ``images_per_second`` (of what this call
        embedded; None if all was there), ``wall_s``, ``config``, ``data_fingerprint`` (of the files), ``versions``.

    Raises:
        UserError: no encoder there, unusable images, an output that exists, or a wrong option.
        Interrupted: Ctrl-C; the parts that are done stay.
    """
    started = time.perf_counter()
    given = {"run": run, "data": data, "output": output, **options}
    config = EmbedConfig(**validate(given, fields_of(EmbedConfig)))
    path = Path(config.output)
    _check_output(path, overwrite)
    keep_freed_memory()
    limit_threads()
    encoder = load(config.run, pick_device(config.device))
    source = open_source(config.data)
    listing = source.scan()
    order = np.sort(np.concatenate(list(listing.splits.values())))
    metadata = _metadata(config, encoder, source)
    decisive = ("encoder_fingerprint", "data_fingerprint", "dtype", "precision")
    identity = {name: metadata[name] for name in decisive}
    with _writing(path):
        parts = Parts(path, identity, overwrite)
    say(_summary(source, listing, len(order), parts.done))

    begun, before = time.perf_counter(), parts.done
    _embed_rest(encoder, source, order, parts, config)
    pace = (len(order) - before) / (time.perf_counter() - begun) if len(order) > before else None

    skipped = listing.refused + _skipped(parts, listing, order)
    rows = len(order) + len(listing.refused) - len(skipped)
    _finish(path, skipped, rows, config)
    with _writing(path):
        chunks = _rows(parts, listing, order, encoder.classes)
        write_features(path, chunks, (rows, encoder.dim), config.dtype, metadata)
        parts.remove()
    figures = {
        "path": str(path),
        "rows": rows,
        "dim": encoder.dim,
        "skipped": len(skipped),
        "images_per_second": pace and round(pace, 1),
    }
    say(f"{path}: {rows:,} rows of {encoder.dim} features" + (f", {pace:,.0f} images/s" if pace else ""))
    return record("embed", config.run, config, figures, started, metadata["data_fingerprint"])


def _check_output(path: Path, overwrite: bool) -> None:
    """All that can be wrong with the output, before anything is decoded."""
    check_format(path)
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; name a file")
    for file in (path, *(sidecars(path) if path.suffix == ".npy" else ())):
        if file.exists() and not overwrite:
            raise UserError(f"--output {path}: {file} exists; name another, or --overwrite to replace it")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Inside, a full disk or a folder that may not be written is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output {path}: can't be written ({error.strerror or error}); what is done is kept: make room or "
            f"fix the folder's permissions and run the same command again"
        ) from error


def _metadata(config: EmbedConfig, encoder: Encoder, source: Source) -> dict[str, Any]:
    """What a feature file says of its origin; paths absolute, so that search finds them from anywhere."""
    return {
        "created_by": f"mocokit {version('mocokit')}",
        "run": os.path.abspath(config.run),
        "encoder_fingerprint": encoder_fingerprint(encoder),
        "spec": encoder.spec.to_dict(),
        "data": os.path.abspath(config.data) if os.path.exists(config.data) else config.data,
        "data_fingerprint": source.fingerprint(),
        "dtype": config.dtype,
        "precision": config.precision,
    }


def _summary(source: Source, listing: ImageIndex, total: int, done: int) -> str:
    counts = ", ".join(f"{len(indices):,} {split}" for split, indices in listing.splits.items())
    ignored = f", {listing.ignored:,} outside train and test not used" if listing.ignored else ""
    resumed = f"; {done:,} of {total:,} are done" if done else ""
    return f"{source.name}: {counts} images{ignored}{resumed}"


def _embed_rest(
    encoder: Encoder, source: Source, order: np.ndarray, parts: Parts, config: EmbedConfig
) -> None:
    """Embed the images that no part holds yet: positions ``parts.done`` and on of ``order``."""
    total, spec, streams = len(order), encoder.spec, 1
    encoder.eval()
    if total - parts.done >= MANY:
        encoder = encoder.for_evaluation()
        streams = usable_cores() if encoder.device.type == "cpu" else 1
    decoded = stream(
        read_all(source, order[parts.done :].tolist()),
        image_size=spec.image_size,
        channels=spec.channels,
        intensity_range=spec.intensity_range,
        workers=worker_count(source, total - parts.done) if config.workers is None else config.workers,
    )
    at_once = max(LEAST_AT_ONCE, config.batch_size // streams) if streams > 1 else config.batch_size
    batches = iter(lambda: list(itertools.islice(decoded, at_once)), [])
    try:
        with closing(decoded), progress("embedding images") as report:
            for count, arrays in _encoded(encoder, batches, parts.position, config, streams):
                with _writing(Path(config.output)):
                    parts.add(count, arrays)
                report(parts.position, total)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped after {parts.position:,} of {total:,} images; run the same command to go on from there"
        ) from None
    finally:
        with _writing(Path(config.output)):
            parts.flush()


def _encoded(
    encoder: Encoder, batches: Iterator[list[Decoded]], start: int, config: EmbedConfig, streams: int
) -> Iterator[tuple[int, Arrays]]:
    """Number of images and result of each batch, in order; the next ones are read while these are encoded.

    On a CPU each of the ``streams`` computes by itself on one core: threads that share every operation wait for
    each other, and longer while the cores also decode.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        streams, initializer=torch.set_num_threads, initargs=(1 if streams > 1 else threads,)
    )
    pending: deque[tuple[int, Future[Arrays]]] = deque()
    try:
        for batch in batches:
            pending.append((len(batch), pool.submit(_encode, encoder, batch, start, config)))
            start += len(batch)
            if len(pending) > streams:
                count, encoded = pending.popleft()
                yield count, encoded.result()
        for count, encoded in pending:
            yield count, encoded.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@torch.inference_mode()
def _encode(encoder: Encoder, batch: list[Decoded], start: int, config: EmbedConfig) -> Arrays:
    """What a part holds of one batch: ``position`` [n] and ``feature`` [n, D], ``skipped`` [m] and ``reason`` [m]."""
    bad = {start + i: str(p) for i, p in enumerate(batch) if isinstance(p, BadImage)}
    images = [torch.from_numpy(pixels) for pixels in batch if isinstance(pixels, np.ndarray)]
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        features = encoder.embed(images, config.batch_size)
    arrays = {
        "position": np.array([i for i in range(start, start + len(batch)) if i not in bad], np.int64),
        "feature": _cast(features, config),
        "skipped": np.array(list(bad), np.int64),
        "reason": np.array(list(bad.values()), str),
    }
    if encoder.classifier is not None:
        probability, predicted = encoder.probabilities(features).max(dim=1)
        arrays |= {"predicted": predicted.numpy(), "probability": probability.numpy()}
    return arrays


def _cast(features: torch.Tensor, config: EmbedConfig) -> np.ndarray:
    if not features.isfinite().all():
        raise UserError(
            f"{config.run}: this encoder gives features that are infinite or not a number; was it trained to the end?"
        )
    with np.errstate(over="ignore"):
        cast = features.numpy().astype(config.dtype)
    if not np.isfinite(cast).all():
        raise UserError("--dtype float16: features above 65,504 don't fit it; use --dtype float32")
    return cast


def _skipped(parts: Parts, listing: ImageIndex, order: np.ndarray) -> list[Skipped]:
    return [
        Skipped(listing.names[order[position]], str(reason))
        for part in parts
        for position, reason in zip(part["skipped"].tolist(), part["reason"].tolist(), strict=True)
    ]


def _finish(path: Path, skipped: list[Skipped], rows: int, config: EmbedConfig) -> None:
    """List what was skipped, or stop if it is too much."""
    listed = path.with_name(f"{path.name}.skipped.csv")
    with _writing(path):
        if skipped:
            write_skipped(listed, skipped)
            say(f"{len(skipped):,} images can't be used; {listed} says why")
        else:
            listed.unlink(missing_ok=True)  # of the output that is replaced
    check_skipped(skipped, rows + len(skipped), config.max_skipped)
    if not rows:
        raise UserError(f"no usable images in {config.data}")


def _rows(parts: Parts, listing: ImageIndex, order: np.ndarray, classes: tuple[str, ...]) -> Iterator[Rows]:
    """The parts with all that the listing says of their images."""
    split_of = np.empty(len(listing.names), object)
    for split, indices in listing.splits.items():
        split_of[indices] = split
    for part in parts.merged(BLOCK_ROWS):
        indices = order[part["position"]]
        labels: list[str | None] = [None] * len(indices)
        if listing.labels is not None and listing.label_names is not None:
            labels = [listing.label_names[value] for value in listing.labels[indices]]
        predicted = [classes[value] for value in part["predicted"]] if classes else None
        yield Rows(
            path=[printable(listing.names[index]) for index in indices],
            split=split_of[indices].tolist(),
            label=labels,
            feature=part["feature"],
            predicted=predicted,
            probability=part["probability"].tolist() if classes else None,
        )
