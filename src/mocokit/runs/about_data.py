"""What to know of the images before a run trains on them, beside the summary of the store, and a sheet of them."""

import shlex
from contextlib import suppress

from mocokit.console import say
from mocokit.data.folder import FolderSource
from mocokit.data.image_index import Source
from mocokit.data.labels_file import read_labels
from mocokit.data.notes import listed
from mocokit.data.store import Store
from mocokit.data.tiled import TiledSource
from mocokit.errors import UserError
from mocokit.files import replacing
from mocokit.model.encoder import EncoderSpec
from mocokit.reporting.contact_sheet import contact_sheet
from mocokit.rundir import RunDirectory

LOST = 3  # times as large as they are seen: from there on that is said
ENLARGED, DEAR = 3, 64  # times as large seen, in at least so many pixels
TRIED, MOST_BYTES = 3, 2**24  # tables that are looked into, and how large they may be


def about_data(store: Store, source: Source, labels: str | None) -> list[str]:
    """Lines on what is lost in size, and on tables in the folder that are not read; ``labels`` is the one that is."""
    tiles, whole = (source.side, source.source) if isinstance(source, TiledSource) else (0, source)
    tables = whole.tables if isinstance(whole, FolderSource) and labels is None else []
    return [*_about_size(store.median_side, store.image_size, tiles), *_about_tables(whole, sorted(tables), store)]


def _about_size(median: float | None, size: int, tiles: int) -> list[str]:
    what = "tiles" if tiles else "images"
    if median is not None and size >= max(DEAR, ENLARGED * median):
        faster = "a smaller --image-size is faster: the work goes with its square"
        return [f"{what} are {median:,.0f} px at their median, enlarged to {size} px: {faster}"]
    if median is None or median < LOST * size:
        return []
    way = "smaller --tiles" if tiles else f"cut into tiles: --tiles {2 * size}"
    gone = f"detail under {median / size:.0f} px is gone; a larger --image-size keeps more, or {way}"
    return [f"{what} are {median:,.0f} px at their median, seen at {size} px: {gone}"]


def _about_tables(source: Source, tables: list[str], store: Store) -> list[str]:
    """Those that hold labels of the images, with the option that reads them; the others by name."""
    names = [name for images in store.splits.values() for name in images.names]
    lines, others = [], tables[TRIED:]
    for table in tables[:TRIED]:
        assert isinstance(source, FolderSource)
        path = source.root / table
        with suppress(UserError, OSError):
            if not table.lower().endswith(".json") and path.stat().st_size <= MOST_BYTES:
                known = int((read_labels(str(path)).match(names)[0] >= 0).sum())
                way = f"--labels {shlex.quote(str(path))}"
                lines.append(f"{table} has labels of {known:,} images, which are not used; to do so: {way}")
                continue
        others.append(table)
    if others:
        are = "is" if len(others) == 1 else "are"
        way = "labels in a CSV or Parquet table, a row an image, are: --labels FILE"
        lines.append(f"{listed(sorted(others))} {are} not used; {way}")
    return lines


def write_sheet(run: RunDirectory, store: Store, spec: EncoderSpec, seed: int) -> None:
    """Write a picture of some training images as the encoder sees them, and say where it is."""
    with run.writing(), replacing(run.images) as temporary:
        contact_sheet(store.splits["train"], spec, seed).save(temporary, "PNG")
    say(f"{run.images}: some of the images, as the encoder sees them")
