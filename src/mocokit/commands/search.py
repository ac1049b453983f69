"""``mocokit search FEATURES QUERY...``: nearest images of image files or rows, near-duplicates, and a picture."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mocokit.commands.results import record
from mocokit.config import SearchConfig
from mocokit.console import progress, say
from mocokit.data.decode import BadImage
from mocokit.data.decode_pool import Encoded, decode_for_model
from mocokit.data.sources import open_source, read_all
from mocokit.deploy import montage
from mocokit.deploy.encoder import load
from mocokit.deploy.features import Features, Named, encoder_fingerprint, open_features, printable
from mocokit.deploy.index import Duplicates, Neighbour, duplicates, search_faiss, vectors
from mocokit.deploy.index import search as search_exact
from mocokit.errors import UserError
from mocokit.files import replacing
from mocokit.machine import pick_device
from mocokit.model.encoder import EncoderSpec
from mocokit.options import documented, fields_of, validate

TOLD_PAIRS = 20  # on stderr, at most


@documented(SearchConfig)
def search(
    features: str, queries: str | int | Sequence[str | int] = (), *, overwrite: bool = False, **options: Any
) -> dict[str, Any]:
    """Find the most similar images in a feature file, and pairs that are nearly the same.

    Args:
        features: what `mocokit.embed` wrote; for rows and duplicates any .npy matrix will do.
        queries: image files, or row numbers of the features; a row is not its own neighbour.
        overwrite: replace an existing montage.
        options: any other field of `mocokit.config.SearchConfig`.

    Returns:
        ``queries``: for each ``{query, row, path, label, neighbours: [{row, path, label, similarity}]}`` with
        cosines, the greatest first. With ``duplicates=T`` also ``duplicates``: ``{rows, paths, similarity}`` of each
        pair of at least that cosine, and ``duplicate_pairs``, how many there are, listed or not. ``rows``,
        ``dim``, ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: a file that is missing, damaged or of another encoder; a row out of range; a wrong option.
    """
    started = time.perf_counter()
    asked = (queries,) if isinstance(queries, str | int | Path) else tuple(queries)
    given = {"features": features, "queries": tuple(map(str, asked)), **options}
    config = SearchConfig(**validate(given, fields_of(SearchConfig)))
    _check(config, overwrite)
    opened = open_features(Path(config.features))
    device = pick_device(config.device)
    figures: dict[str, Any] = {"rows": opened.rows, "dim": opened.dim}
    rows = [_row(query) for query in config.queries]
    neighbours = _search(opened, config, rows, device) if rows else []
    found = None if config.duplicates is None else _duplicates(opened, config.duplicates, device)
    named = opened.named(_mentioned(rows, neighbours, found))
    figures["queries"] = _tell_neighbours(config, rows, neighbours, named)
    if found is not None:
        figures |= _tell_duplicates(found, named)
    if config.montage is not None:
        _draw(opened, config, figures)
    metadata = opened.metadata or {}
    return record("search", _run(opened, config), config, figures, started, metadata.get("data_fingerprint"))


def _check(config: SearchConfig, overwrite: bool) -> None:
    """What can be wrong with the options, before anything is read."""
    if not config.queries and config.duplicates is None:
        raise UserError("search: nothing asked; give image files or row numbers, or --duplicates T")
    if config.montage is not None:
        path = Path(config.montage)
        if path.suffix.lower() != ".png":
            raise UserError(f"--montage {path}: name a .png file")
        if path.is_dir():
            raise UserError(f"--montage {path}: is a folder; name a .png file")
        if path.exists() and not overwrite:
            raise UserError(f"--montage {path}: exists; name another, or --overwrite to replace it")


def _row(query: str) -> int | None:
    """A query that is a number means that row; ``./7`` names a file."""
    return int(query) if query.isascii() and query.isdigit() else None


def _run(features: Features, config: SearchConfig) -> str | None:
    """The run that made the features, if it is still where it was."""
    run = config.run or (features.metadata or {}).get("run")
    return str(run) if run and (Path(str(run)) / "encoder.safetensors").is_file() else None


# Neighbours -----------------------------------------------------------------------------------------------


def _search(
    features: Features, config: SearchConfig, rows: list[int | None], device: str
) -> list[list[Neighbour]]:
    files = [query for query, row in zip(config.queries, rows, strict=True) if row is None]
    asking = np.empty((len(rows), features.dim), np.float32)
    is_file = np.array([row is None for row in rows])
    if files:
        asking[is_file] = _embedded(features, config, files, device)
    if not is_file.all():
        asking[~is_file] = vectors(features, [row for row in rows if row is not None])
    if config.k > features.rows:
        say(f"--k {config.k}: {features.path} has no more than {features.rows} rows")
    with progress("searching") as report:
        if config.engine == "faiss":
            return search_faiss(features, asking, config.k, rows, report)
        return search_exact(features, asking, config.k, rows, device, report)


def _embedded(features: Features, config: SearchConfig, files: list[str], device: str) -> np.ndarray:
    """Features [len(files), D] of image files, by the encoder that made the others."""
    metadata = features.metadata or {}
    run = config.run or str(metadata.get("run") or "")
    for file in files:
        if not Path(file).is_file():
            raise UserError(
                f"query {file}: no such file; a query is an image file or a row from 0 to {features.rows - 1}"
            )
    if not run:
        raise UserError(
            f"{features.path} does not say which encoder made it; name it with --run, or ask by row number"
        )
    if config.run is None and not Path(run).exists():
        raise UserError(f"{run}, whose encoder made {features.path}, is gone; name where it is with --run")
    encoder = load(run, device)
    made_by = metadata.get("encoder_fingerprint")
    if encoder.dim != features.dim or (made_by and made_by != encoder_fingerprint(encoder)):
        raise UserError(
            f"{run}: not the encoder that made {features.path}; name that one with --run, or embed the images again"
        )
    vectors = encoder.embed(files).numpy()
    for file, vector in zip(files, vectors, strict=True):
        if not (np.isfinite(vector).all() and vector.any()):
            raise UserError(f"query {file}: its features are zero or not finite, which resembles nothing")
    return vectors


def _duplicates(features: Features, threshold: float, device: str) -> Duplicates:
    with progress("looking for duplicates") as report:
        return duplicates(features, threshold, device, report)


def _mentioned(
    rows: list[int | None], neighbours: list[list[Neighbour]], found: Duplicates | None
) -> set[int]:
    """All rows whose paths are told."""
    mentioned = {row for row in rows if row is not None}
    mentioned |= {neighbour.row for nearest in neighbours for neighbour in nearest}
    return mentioned | {row for pair in (found.pairs if found else []) for row in pair.rows}


# What is told ---------------------------------------------------------------------------------------------


def _tell_neighbours(
    config: SearchConfig,
    rows: list[int | None],
    neighbours: list[list[Neighbour]],
    named: dict[int, Named],
) -> list[dict[str, Any]]:
    """The result's ``queries``; a table of them goes to stderr."""
    told = []
    for query, row, nearest in zip(config.queries, rows, neighbours, strict=True):
        itself = Named() if row is None else named[row]
        say(f"{query}" + "".join(f"  {part}" for part in itself if part))
        say("   similarity       row  label         path")
        for row_, similarity in nearest:
            path, label = named[row_]
            say(f"   {similarity:10.6f}  {row_:8}  {label or '-':12}  {path or '-'}")
        told.append(
            {"query": query, "row": row}
            | itself._asdict()
            | {"neighbours": [{"row": r, **named[r]._asdict(), "similarity": s} for r, s in nearest]}
        )
    return told


def _tell_duplicates(found: Duplicates, named: dict[int, Named]) -> dict[str, Any]:
    """The result's ``duplicates``; the first of them go to stderr."""
    pairs = [
        {"rows": list(rows), "paths": [named[row].path for row in rows], "similarity": similarity}
        for rows, similarity in found.pairs
    ]
    listed = f"; the {len(pairs):,} most similar are listed" if len(pairs) < found.count else ""
    say(f"{found.count:,} pairs of near-duplicates{listed}")
    for rows, similarity in found.pairs[:TOLD_PAIRS]:
        paths = "  ".join(f"{named[row].path or '-'} ({row})" for row in rows)
        say(f"   {similarity:.6f}  {paths}")
    if len(pairs) > TOLD_PAIRS:
        say(f"   and {len(pairs) - TOLD_PAIRS:,} more: see --json")
    return {"duplicates": pairs, "duplicate_pairs": found.count}


# The montage ----------------------------------------------------------------------------------------------


def _draw(features: Features, config: SearchConfig, figures: dict[str, Any]) -> None:
    """Write the picture: a line for each query, then the pairs."""
    path = Path(config.montage or "")
    queries = figures["queries"][: montage.MAX_LINES]
    pairs = figures.get("duplicates", [])[: montage.PAIRS_A_LINE * (montage.MAX_LINES - len(queries))]
    if not (queries or pairs):
        say(f"{path}: not written, for there is nothing to draw")
        return
    shown = [q["path"] for q in queries if q["row"] is not None]
    shown += [n["path"] for q in queries for n in q["neighbours"][: montage.MAX_NEIGHBOURS]]
    shown += [p for pair in pairs for p in pair["paths"]]
    images = _images_of_rows(features, config, shown)
    files = [q["query"] for q in queries if q["row"] is None]
    queried = dict(
        zip(files, _pixels([Path(file).read_bytes() for file in files], files, features), strict=True)
    )
    picture = montage.draw(montage.query_lines(queries, images, queried) + montage.pair_lines(pairs, images))
    try:
        with replacing(path) as temporary:
            picture.save(temporary, "PNG")
    except OSError as error:
        raise UserError(f"--montage {path}: can't be written ({error.strerror or error})") from None
    drawn = [f"{len(queries)} queries"] * bool(queries) + [f"{len(pairs)} pairs"] * bool(pairs)
    say(f"{path}: {' and '.join(drawn)} drawn")


def _images_of_rows(
    features: Features, config: SearchConfig, paths: list[str | None]
) -> dict[str, np.ndarray]:
    """The images at some paths inside the data, read again."""
    data = config.data or (features.metadata or {}).get("data")
    if not data or None in paths:
        raise UserError(
            f"--montage: {features.path} does not say which images its rows are; embed them with mocokit"
        )
    source = open_source(str(data))
    index = {printable(name): i for i, name in enumerate(source.read_index().names)}
    names = sorted({path for path in paths if path is not None})
    for name in names:
        if name not in index:
            raise UserError(
                f"--montage: no image {name} in {data}; name with --data where the images are now"
            )
    return dict(
        zip(names, _pixels(read_all(source, [index[n] for n in names]), names, features), strict=True)
    )


def _pixels(images: Iterable[Encoded], names: list[str], features: Features) -> list[np.ndarray]:
    """What is drawn of images: uint8 [1 or 3, H, W], of more bands the first."""
    spec = _spec(features)
    channels = 3 if spec is None or spec.channels in (1, 3) else spec.channels
    intensity_range = None if spec is None else spec.intensity_range
    decoded = decode_for_model(
        images, image_size=montage.TILE, channels=channels, intensity_range=intensity_range
    )
    pixels = []
    for name, image in zip(names, decoded, strict=True):
        if isinstance(image, BadImage):
            raise UserError(f"--montage: {name}: {image}")
        pixels.append(image if channels == 3 else image[:1])
    return pixels


def _spec(features: Features) -> EncoderSpec | None:
    try:
        return EncoderSpec.from_dict((features.metadata or {})["spec"])
    except (LookupError, TypeError, ValueError):
        return None
