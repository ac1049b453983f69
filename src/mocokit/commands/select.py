"""``mocokit select RUN DATA -n N``: which images to label first, as a table of their names."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import record
from mocokit.config import SelectConfig
from mocokit.console import say
from mocokit.data.labels_file import read_labelled
from mocokit.data.notes import count as counted
from mocokit.data.store import Store
from mocokit.errors import UserError
from mocokit.evaluation.features import extract
from mocokit.files import printable, write_csv
from mocokit.options import config_of, documented
from mocokit.outputs import check_file, writing
from mocokit.reporting.selection import Choice, typiclust
from mocokit.runs.held_out import parts_if_labelled

COLUMNS = ("image", "order", "cluster", "cluster_size", "typicality")
PRINTED = 10  # on stderr, at most


@documented(SelectConfig)
def select(run: str, data: str, count: int, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Choose which training images to label first: typical ones of all kinds that there are, and no test images.

    No label decides what is chosen. But where images have labels and no test split, those that are held out for testing
    are left out, and a ``limit`` takes as many of each class.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: images, as for `mocokit.pretrain`.
        count: how many images to choose.
        overwrite: replace an existing output.
        options: any other field of `mocokit.config.SelectConfig`.

    Returns:
        ``path`` of the CSV file and its rows, ``selected``: ``{image, order, cluster, cluster_size, typicality}`` in
        the order of choice, from 1 (`mocokit.reporting.selection`); ``candidates``, how many images there were to
        choose from, and ``given``, how many more are labelled already; ``wall_s``, ``config``, ``data_fingerprint``,
        ``versions``.

    Raises:
        UserError: no encoder there, fewer images than are to be chosen, a table that names none of them, an output
            that exists, or a wrong option.
    """
    started = time.perf_counter()
    config = config_of(SelectConfig, run=run, data=data, count=count, **options)
    path = _output(config, overwrite)
    inputs = open_inputs(config, to_train=True)
    images, rows = inputs.store.splits["train"], _candidates(inputs.store, config)
    names = [printable(images.names[row]) for row in rows.tolist()]
    given = _given(inputs.store, config, names)
    left = len(rows) - len(given)
    if config.count > left:
        raise UserError(f"--count {config.count}: there are {left:,} images to choose from; give no more")
    chosen = typiclust(extract(inputs.encoder, images, rows), config.count, config.seed, given)
    selected = [_row(names[choice.row], order, choice) for order, choice in enumerate(chosen, start=1)]
    with writing(path.parent):
        write_csv(path, COLUMNS, (each.values() for each in selected))
    _print(path, selected, left)
    figures = {"path": str(path), "selected": selected, "candidates": left, "given": len(given)}
    return record("select", config.run, config, figures, started, inputs.store.fingerprint)


def _output(config: SelectConfig, overwrite: bool) -> Path:
    """Where to write; what can be wrong with that, before anything is read."""
    home = Path(config.run) if Path(config.run).is_dir() else Path()
    path = Path(config.output) if config.output else home / "select.csv"
    check_file("--output", path, overwrite)
    return path


def _candidates(store: Store, config: SelectConfig) -> Tensor:
    """The training images, [N] int64, without those that are held out for testing."""
    images, parts = store.splits["train"], parts_if_labelled(store, config)
    rows = torch.arange(len(images))
    if parts and parts.test.images is images:
        rows = rows[~torch.isin(rows, parts.test.indices)]
        say(f"{len(parts.test):,} labelled images are held out for testing (seed {config.seed}) and not chosen")
    labelled = 0 if images.labels is None else int((images.labels[rows] >= 0).sum())
    if 0 < labelled < len(rows) and config.given is None:
        say(f"{labelled:,} of {len(rows):,} images have labels; to choose others only, name their table by --given")
    return rows


def _given(store: Store, config: SelectConfig, names: list[str]) -> list[int]:
    """Positions in ``names``, those of the candidates, of what is labelled already."""
    if config.given is None:
        return []
    labelled = read_labelled(config.given)
    if not labelled.names:
        say(f"{config.given}: no image is labelled already")
        return []
    known = [name for part in store.splits.values() for name in part.names]
    known += [skipped.name for skipped in store.skipped]
    others = sorted({printable(name) for name in known} - set(names))  # a table may be about these, too
    row_of, lines = labelled.match([*names, *others])
    given = np.flatnonzero(row_of[: len(names)] >= 0).tolist()
    for line in (f"{config.given}: {len(given):,} of {len(names):,} images are labelled already", *lines):
        say(line)
    return given


def _row(image: str, order: int, choice: Choice) -> dict[str, Any]:
    """A line of the table."""
    values = (image, order, choice.cluster, choice.cluster_size, round(choice.typicality, 4))
    return dict(zip(COLUMNS, values, strict=True))


def _print(path: Path, selected: list[dict[str, Any]], candidates: int) -> None:
    say("order  cluster  of images  typicality  image")
    for each in selected[:PRINTED]:
        figures = f"{each['order']:5}  {each['cluster']:7}  {each['cluster_size']:9,}  {each['typicality']:10.3f}"
        say(f"{figures}  {' '.join(each['image'].split())}")
    if len(selected) > PRINTED:
        say(f"   and {len(selected) - PRINTED:,} more")
    clusters = len({each["cluster"] for each in selected})
    of = counted(clusters, "cluster", "clusters")
    say(f"{path}: {len(selected):,} of {candidates:,} images to label first, from {of}")
