"""``mocokit search FEATURES QUERY...``: nearest images of image files or rows, near-duplicates, a montage."""

import time
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from mocokit.commands.results import record
from mocokit.config import SearchConfig
from mocokit.console import say
from mocokit.data.notes import count as counted
from mocokit.data.sources import check_there, open_source
from mocokit.deploy import montage
from mocokit.deploy.feature_file import Features, Named, open_features
from mocokit.deploy.nearest import Neighbour, duplicates, groups, least_cosine, nearest, vectors
from mocokit.errors import UserError
from mocokit.evaluation.near_duplicates import TIMES_NEARER
from mocokit.files import replacing
from mocokit.machine import pick_device
from mocokit.options import config_of, documented
from mocokit.outputs import check_file

PRINTED_PAIRS = 20  # on stderr, at most


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
        cosines, the greatest first. With ``duplicates`` (a cosine, or "auto": five times nearer to 1 than the nearest
        other row usually is) also ``duplicates``: ``{rows, paths, similarity}`` of each pair of at least that cosine,
        ``duplicates_from``; ``duplicate_pairs``, how many there are, listed or not; and ``duplicate_groups``, the
        rows that listed pairs connect, largest group first. ``rows``, ``dim``, ``wall_s``, ``config``,
        ``data_fingerprint``, ``versions``.

    Raises:
        UserError: a file that is missing, damaged or of another encoder; a row out of range; a wrong option.
    """
    started = time.perf_counter()
    asked = (queries,) if isinstance(queries, str | int | Integral | Path) else queries
    config = config_of(SearchConfig, features=features, queries=tuple(map(str, asked)), **options)
    asked_least = _check(config, overwrite)
    opened, device = open_features(Path(config.features)), pick_device(config.device)
    rows = [int(query) if query.isascii() and query.isdigit() else None for query in config.queries]  # ./7 is a file
    neighbours = _neighbours(opened, config, rows, device) if rows else []
    least = least_cosine(opened, device) if config.duplicates == "auto" else asked_least
    pairs, count = ([], 0) if least is None else duplicates(opened, least, device)
    named = {row for row in rows if row is not None} | {n.row for found in neighbours for n in found}
    names = opened.named(named | {row for pair in pairs for row in pair.rows})

    figures: dict[str, Any] = {"rows": opened.rows, "dim": opened.dim}
    figures["queries"] = _query_results(config, rows, neighbours, names)
    _print_queries(figures["queries"])
    if least is not None:
        figures["duplicates"] = [
            {"rows": list(pair.rows), "paths": [names[row].path for row in pair.rows], "similarity": pair.similarity}
            for pair in pairs
        ]
        figures |= {"duplicates_from": least, "duplicate_pairs": count, "duplicate_groups": groups(pairs)}
        _print_duplicates(figures, config.duplicates == "auto")
    if config.montage is not None:
        _write_montage(opened, config, figures["queries"], figures.get("duplicates", []))
    metadata = opened.metadata or {}
    return record("search", _run(opened, config), config, figures, started, metadata.get("data_fingerprint"))


def _check(config: SearchConfig, overwrite: bool) -> float | None:
    """What can be wrong with the options, before anything is read; the cosine that they say, if they do."""
    if not config.queries and config.duplicates is None:
        raise UserError("search: no queries; give image files or row numbers, or --duplicates auto")
    try:
        least = None if config.duplicates in (None, "auto") else float(config.duplicates)
        if least is not None and not -1 <= least <= 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--duplicates {config.duplicates}: give auto, or a cosine from -1 to 1") from None
    if config.montage is not None:
        check_file("--montage", Path(config.montage), overwrite, (".png",))
    return least


def _run(features: Features, config: SearchConfig) -> str | None:
    """The run that made the features, if it is still where it was."""
    run = config.run or (features.metadata or {}).get("run")
    return str(run) if run and (Path(str(run)) / "encoder.safetensors").is_file() else None


def _neighbours(features: Features, config: SearchConfig, rows: list[int | None], device: str) -> list[list[Neighbour]]:
    if config.k > features.rows:
        say(f"--k {config.k}: {features.path} has no more than {features.rows} rows")
    is_file = np.array([row is None for row in rows])
    queries = np.empty((len(rows), features.dim), np.float32)
    if is_file.any():
        files = [query for query, row in zip(config.queries, rows, strict=True) if row is None]
        queries[is_file] = _embedded(features, config, files, device)
    if not is_file.all():
        queries[~is_file] = vectors(features, [row for row in rows if row is not None])
    return nearest(features, queries, config.k, rows, device)


def _embedded(features: Features, config: SearchConfig, files: list[str], device: str) -> np.ndarray:
    """Features [len(files), D] of image files, by the encoder that made the others."""
    metadata = features.metadata or {}
    from mocokit.deploy.encoder_file import encoder_fingerprint  # take seconds, and most queries are rows
    from mocokit.deploy.loading import is_foreign, load

    run = config.run or str(metadata.get("run") or "")
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"query {file}: no such file; name an image file or a row from 0 to {features.rows - 1}")
    if not run:
        raise UserError(f"{features.path} does not say which encoder made it; name it with --run, or search by rows")
    if metadata.get("tiles"):
        say(f"the features are of tiles of about {metadata['tiles']} pixels a side; image files are embedded whole")
    foreign = is_foreign(run)
    if config.run is None and not (foreign or Path(run).exists()):
        raise UserError(f"{run}, whose encoder made {features.path}, is gone; name its place with --run")
    spec: Any = metadata.get("spec") or {}
    how = {name: spec.get(name) for name in ("backbone", "image_size")} if foreign else {}
    encoder = load(run, device, **how)
    made_by = metadata.get("encoder_fingerprint")
    if encoder.dim != features.dim or (made_by and made_by != encoder_fingerprint(encoder)):
        raise UserError(f"{run}: not the encoder that made {features.path}; name that with --run, or embed again")
    vectors = encoder.embed(files).numpy()
    for file, vector in zip(files, vectors, strict=True):
        if not (np.isfinite(vector).all() and vector.any()):
            raise UserError(f"query {file}: its features are zero or not finite, which resembles nothing")
    return vectors


def _query_results(
    config: SearchConfig, rows: list[int | None], neighbours: list[list[Neighbour]], names: dict[int, Named]
) -> list[dict[str, Any]]:
    return [
        {
            "query": query,
            "row": row,
            **(Named() if row is None else names[row])._asdict(),
            "neighbours": [{"row": r, **names[r]._asdict(), "similarity": s} for r, s in found],
        }
        for query, row, found in zip(config.queries, rows, neighbours, strict=True)
    ]


def _print_queries(queries: list[dict[str, Any]]) -> None:
    for query in queries:
        say("  ".join(filter(None, (query["query"], query["path"], query["label"]))))
        say("   similarity       row  label         path")
        for n in query["neighbours"]:
            say(f"   {n['similarity']:10.6f}  {n['row']:8}  {n['label'] or '-':12}  {n['path'] or '-'}")


def _print_duplicates(figures: dict[str, Any], chosen: bool) -> None:
    pairs, count, found = figures["duplicates"], figures["duplicate_pairs"], figures["duplicate_groups"]
    listed = f"; the {len(pairs):,} most similar are listed" if len(pairs) < count else ""
    largest = f" in {counted(len(found), 'group', 'groups')}, the largest of {len(found[0]):,} images" if found else ""
    why = f", {TIMES_NEARER} times nearer to 1 than the nearest usually is" if chosen else ""
    said = f"{counted(count, 'pair', 'pairs')} of near-duplicates{largest}{listed}"
    say(f"{said}: cosine {figures['duplicates_from']:.6g} or more{why}")
    for pair in pairs[:PRINTED_PAIRS]:
        paths = "  ".join(f"{p or '-'} ({row})" for p, row in zip(pair["paths"], pair["rows"], strict=True))
        say(f"   {pair['similarity']:.6f}  {paths}")
    if len(pairs) > PRINTED_PAIRS:
        say(f"   and {len(pairs) - PRINTED_PAIRS:,} more: see --json")


def _write_montage(
    features: Features, config: SearchConfig, queries: list[dict[str, Any]], pairs: list[dict[str, Any]]
) -> None:
    """Draw a line for each query, then the pairs, as many as there is room for."""
    path, metadata = Path(config.montage or ""), features.metadata or {}
    queries = queries[: montage.MAX_LINES]
    pairs = pairs[: montage.PAIRS_A_LINE * (montage.MAX_LINES - len(queries))]
    if not (queries or pairs):
        say(f"{path}: not written, for there is nothing to draw")
        return
    paths = [q["path"] for q in queries if q["row"] is not None]
    paths += [n["path"] for q in queries for n in q["neighbours"][: montage.MAX_NEIGHBOURS]]
    paths += [p for pair in pairs for p in pair["paths"]]
    data = config.data or metadata.get("data")
    if not data or None in paths:
        raise UserError(f"--montage: {features.path} does not say which images its rows are; embed them with mocokit")
    if not config.data:
        check_there(str(data), str(features.path), "--data DATA")
    source = open_source(str(data), config.follow_links, config.max_pixels, tiles=int(metadata.get("tiles", 0)))
    images = montage.images_of_rows(str(data), source, sorted(set(paths)), metadata.get("spec"))
    files = montage.images_of_files([q["query"] for q in queries if q["row"] is None], metadata.get("spec"))
    image = montage.draw(montage.query_lines(queries, images, files) + montage.pair_lines(pairs, images))
    try:
        with replacing(path) as temporary:
            image.save(temporary, "PNG")
    except OSError as error:
        raise UserError(f"--montage {path}: can't be written ({error.strerror or error})") from None
    drawn = f"{counted(len(queries), 'query', 'queries')} and {counted(len(pairs), 'pair', 'pairs')} of near-duplicates"
    say(f"{path}: {drawn} drawn")
