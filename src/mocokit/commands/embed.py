"""``mocokit embed RUN DATA -o FILE``: the features of every image, streamed from the source to a table on disk."""

import os
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import mocokit
from mocokit.commands.inputs import tiles_of
from mocokit.commands.results import record
from mocokit.config import EmbedConfig, Precision
from mocokit.console import progress, say
from mocokit.data.build import check_skipped
from mocokit.data.image_index import ImageIndex, Skipped, Source
from mocokit.data.labelled import lay_over_index
from mocokit.data.notes import Notes, count
from mocokit.data.sources import open_source
from mocokit.data.store import write_skipped
from mocokit.deploy.embedded_parts import Parts, parts_directory, precision_of_parts
from mocokit.deploy.embedding import embed_images
from mocokit.deploy.encoder_file import encoder_fingerprint
from mocokit.deploy.feature_file import check_format, feature_files, open_features, write_features
from mocokit.deploy.loading import load
from mocokit.errors import Interrupted, UserError
from mocokit.files import remove_temporary, utf8_path
from mocokit.machine import keep_freed_memory, limit_threads, pick_device
from mocokit.model.digest import digest
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import encoding_precision
from mocokit.options import config_of, documented
from mocokit.outputs import check_file, writing
from mocokit.reporting.images import MOST
from mocokit.reporting.map_columns import with_map
from mocokit.reporting.projection import check_installed
from mocokit.rundir import RunDirectory
from mocokit.runs.held_out import labels_of

MAP_SEED = 0
IDENTITY = ("encoder_fingerprint", "data_fingerprint", "dtype", "precision", "max_pixels", "columns")  # of rows


@documented(EmbedConfig)
def embed(run: str, data: str, output: str, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Write the features of all images to a file, in the order of their paths.

    An interrupted or killed call goes on where it was when it is made again; a finished one is left as it is. Images
    that can't be used are listed in ``OUTPUT.skipped.csv``.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes; a fine-tuned encoder also gives ``predicted``
            and ``probability``.
        data: as for `mocokit.pretrain`; all its splits are embedded.
        output: .parquet, .npz or .npy; see `mocokit.deploy.feature_file`.
        overwrite: replace an existing output.
        options: any other field of `mocokit.config.EmbedConfig`.

    Returns:
        ``path``, ``rows``, ``dim``, ``skipped`` (number of images), ``images_per_second`` (of what this call
        embedded; None if all was there), ``wall_s``, ``config``, ``data_fingerprint`` (of the files), ``versions``.

    Raises:
        UserError: no encoder there, unusable images, an output that another command wrote, or a wrong option.
        Interrupted: Ctrl-C; the parts that are done stay.
    """
    started = time.perf_counter()
    config = config_of(EmbedConfig, run=run, data=data, output=output, **options)
    path = Path(config.output)
    _check_output(path, overwrite)
    keep_freed_memory()
    limit_threads(config.threads)
    device = pick_device(config.device)
    encoder = load(config.run, device, backbone=config.backbone, image_size=config.image_size)
    config = replace(config, tiles=tiles_of(config.tiles, encoder))
    labels = labels_of(config.labels, config.labels_columns)
    tiles = config.tiles or 0
    source = open_source(config.data, config.follow_links, config.max_pixels, config.train, config.test, tiles)
    index = source.read_index() if labels is None else lay_over_index(source.read_index(), labels)
    with RunDirectory(parts_directory(path)).locked():
        result = _embed(config, encoder, source, index, overwrite, started)
    with suppress(OSError):  # another command has begun there
        parts_directory(path).rmdir()
    return result


def _embed(
    config: EmbedConfig, encoder: Encoder, source: Source, index: ImageIndex, overwrite: bool, started: float
) -> dict[str, Any]:
    """The command from where it looks at what is there; no other one writes to the output."""
    path = Path(config.output)
    skipped_csv = path.with_name(f"{path.name}.skipped.csv")
    order = np.sort(np.concatenate(list(index.splits.values())))
    begun: Precision | None = precision_of_parts(path)  # goes on as it began, whatever would be chosen now
    if not (begun or overwrite):
        begun = _written_metadata(path).get("precision")
    config = replace(config, precision=config.precision or begun or encoding_precision(encoder, len(order)))
    metadata = _metadata(config, encoder, source) | {"columns": _columns(config, index)}
    found = len(order) + len(index.refused)
    _check_map(config, len(order))
    finished = not overwrite and _is_complete(path, metadata)
    finished = finished and found - open_features(path).rows <= config.max_skipped * found  # else it is refused again
    with writing(path.parent):
        parts = Parts(path, {name: metadata[name] for name in IDENTITY}, overwrite)
        for file in (*feature_files(path), skipped_csv):
            remove_temporary(file)  # of a killed command
    with suppress(OSError):
        remove_temporary(RunDirectory(Path(config.run)).result("embed"))

    pace = None
    if finished:
        say(f"{path} is finished; give another --output, or --overwrite to do it again")
    else:
        say(_summary(source, index, len(order), parts.done))
        pace = _embed_rest(encoder, source, index, order, parts, config)
        parts.check_complete(len(order))
        skipped = index.refused + parts.skipped()
        rows = found - len(skipped)
        _report_skipped(skipped_csv, skipped, rows, config)
        with writing(path.parent):
            write_features(path, parts.tables(), rows, metadata)

    if config.map and not _written_metadata(path).get("map") and open_features(path).rows > 1:
        say(f"{path}: drawing the map")
        with writing(path.parent):
            _add_map(path, metadata)
    rows = open_features(path).rows
    figures = {
        "path": str(path),
        "rows": rows,
        "dim": encoder.dim,
        "skipped": found - rows,
        "images_per_second": pace and round(pace, 1),
    }
    say(f"{path}: {count(rows, 'row', 'rows')} of {encoder.dim} features" + (f", {pace:,.0f} images/s" if pace else ""))
    result = record("embed", config.run, config, figures, started, metadata["data_fingerprint"])
    parts.remove()  # last, so that a command killed anywhere before is taken up again
    return result


def _check_output(path: Path, overwrite: bool) -> None:
    """All that can be wrong with the output, before anything is decoded."""
    check_format(path)
    check_file("--output", path, overwrite=True)  # if it exists, it may be this command's to go on with
    existing = [file for file in feature_files(path) if file.exists()]
    if existing and not (overwrite or parts_directory(path).exists() or _written_metadata(path)):
        raise _exists(path, existing[0])


def _check_map(config: EmbedConfig, images: int) -> None:
    """What can be wrong with ``--map``."""
    if not config.map:
        return
    if Path(config.output).suffix != ".parquet":
        raise UserError(f"--map: its columns are for .parquet; {config.output} is none")
    if images > MOST:
        raise UserError(f"--map: is for {MOST:,} images at most, there are {images:,}; leave it out")
    if images < 2:
        raise UserError("--map: a single image has no neighbours; leave it out")
    check_installed("--map")


def _add_map(path: Path, metadata: dict[str, Any]) -> None:
    table = with_map(pq.read_table(utf8_path(path)), MAP_SEED)
    write_features(path, [table], len(table), metadata | {"map": True})


def _exists(path: Path, file: Path) -> UserError:
    return UserError(f"--output {path}: {file} exists; name another, or --overwrite to replace it")


def _is_complete(path: Path, metadata: dict[str, Any]) -> bool:
    """Whether ``path`` is what this command writes, finished earlier or killed on the way out; nothing else may be
    there."""
    if not path.exists():
        return False
    found = _written_metadata(path)
    if any(found.get(name) != metadata[name] for name in IDENTITY):
        raise _exists(path, path)
    return all(file.exists() for file in feature_files(path))


def _written_metadata(path: Path) -> dict[str, Any]:
    """What mocokit wrote of the feature file ``path``; empty of any other file, a damaged one or none."""
    try:
        return open_features(path).metadata or {}
    except UserError:
        return {}


def _metadata(config: EmbedConfig, encoder: Encoder, source: Source) -> dict[str, Any]:
    """What a feature file says of its origin; paths absolute, so that search finds them from anywhere."""
    return {
        "created_by": f"mocokit {mocokit.__version__}",
        "run": os.path.abspath(config.run) if os.path.exists(config.run) else config.run,
        "encoder_fingerprint": encoder_fingerprint(encoder),
        "spec": encoder.spec.to_dict(),
        "data": os.path.abspath(config.data) if os.path.exists(config.data) else config.data,
        "data_fingerprint": source.fingerprint(),
        "dtype": config.dtype,
        "precision": config.precision,
        "max_pixels": config.max_pixels,
        "tiles": config.tiles,
    }


def _columns(config: EmbedConfig, index: ImageIndex) -> str | None:
    """Fingerprint of splits and labels where options say them; None where they are those of the data."""
    if not (config.labels or config.train or config.test):
        return None
    splits = {split: torch.from_numpy(rows) for split, rows in index.splits.items()}
    values = None if index.labels is None else torch.from_numpy(index.labels)
    return digest([splits, values, index.label_names])


def _summary(source: Source, index: ImageIndex, total: int, done: int) -> str:
    counts = ", ".join(f"{len(indices):,} {split}" for split, indices in index.splits.items())
    resumed = f"; {done:,} of {total:,} are done" if done else ""
    return "\n".join([f"{source.name}: {counts} images{resumed}", *index.all_notes()])


def _embed_rest(
    encoder: Encoder, source: Source, index: ImageIndex, order: np.ndarray, parts: Parts, config: EmbedConfig
) -> float | None:
    """Embed the images that no part holds yet; returns images per second, None if there were none."""
    started, before, total = time.perf_counter(), parts.done, len(order)
    notes = Notes()
    chunks = embed_images(encoder, source, index, order, before, config, notes)
    try:
        with closing(chunks), progress("embedding images") as report:
            for chunk in chunks:
                parts.add(*chunk)
                report(parts.position, total)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped after {parts.position:,} of {total:,} images; run the same command to go on from there"
        ) from None
    finally:
        parts.flush()
    for line in notes.lines():
        say(line)
    return (total - before) / (time.perf_counter() - started) if total > before else None


def _report_skipped(file: Path, skipped: list[Skipped], rows: int, config: EmbedConfig) -> None:
    """List what was skipped, or stop if it is too much."""
    with writing(file.parent):
        if skipped:
            write_skipped(file, skipped)
            say(f"{count(len(skipped), 'image', 'images')} can't be used; {file} says why")
        else:
            file.unlink(missing_ok=True)  # of the output that is replaced
    check_skipped(skipped, rows + len(skipped), config.max_skipped)
    if not rows:
        raise UserError(f"no usable images in {config.data}")
