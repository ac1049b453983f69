"""Sections on the images: the map with its search and selection, the clusters, and the neighbours of some."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from mocokit.data.notes import count
from mocokit.data.sampler import random_subset
from mocokit.reporting.charts import palette
from mocokit.reporting.clusters import Clusters, class_mix
from mocokit.reporting.images import ReportImages
from mocokit.reporting.neighbours import SHOWN, Neighbours
from mocokit.reporting.page import Section, paragraph, strip
from mocokit.reporting.thumbnails import LARGER, SIDE, thumbnail

TYPICAL, QUERIES = 10, 12  # images of a cluster, images with their neighbours
THUMBNAILS = 10_000
MOST_KINDS = 200  # of a colouring

MAP = """<p>{text}</p>
<div class="controls">
<label>Colour by <select id="colour"></select></label>
<label>Find <input id="search" type="search" placeholder="part of a name"></label>
<span id="found" class="faint"></span>
</div>
<div id="map"><div>{chart}<div id="legend"></div></div><div id="beside"><p class="faint">Point at an image to see it and
what the encoder finds most like it; tap, box and lasso select.</p></div></div>
<div class="controls"><span id="count"></span> <button id="copy" disabled>Copy names</button>
<button id="save" disabled>Save as CSV</button> <button id="clear" disabled>Clear</button></div>
<div id="chosen"></div>"""


class Colouring(NamedTuple):
    """A way to colour the map: ``codes`` [N] int64 of the ``kinds``, -1 for none."""

    name: str
    codes: np.ndarray
    kinds: Sequence[str]

    def data(self) -> dict[str, Any]:
        """As page.js takes it."""
        kinds = list(self.kinds)
        return {"name": self.name, "codes": self.codes.tolist(), "kinds": kinds, "palette": palette(max(1, len(kinds)))}


def colourings(images: ReportImages, clusters: Clusters, columns: dict[str, list[str | None]]) -> list[Colouring]:
    """By class, cluster, split, and each of the ``columns`` of a file of labels that has few different values."""
    found = []
    if images.labels is not None and images.label_names and len(images.label_names) <= MOST_KINDS:
        found.append(Colouring("class", images.labels, images.label_names))
    kinds = [f"cluster {number}" for number in range(1, len(clusters.typical) + 1)]
    found.append(Colouring("cluster", clusters.of, kinds))
    for name, values in {"split": images.splits.tolist(), **columns}.items():
        different = sorted({value for value in values if value})
        if 1 < len(different) <= MOST_KINDS and name not in ("class", "cluster"):
            code = {value: number for number, value in enumerate(different)}
            found.append(Colouring(name, np.array([code.get(value or "", -1) for value in values]), different))
    return found


def map_section(images: ReportImages, chart: str) -> Section:
    """The map, its controls, and what is said of how it was made."""
    all_images = f"All {len(images):,} images" if len(images) == images.total else ""
    some = f"{len(images):,} of {images.total:,} images, drawn at random"
    text = (
        f"{all_images or some}; those that the encoder finds alike lie together (t-SNE of the features: near points are"
        " near in feature space, distances between groups mean little)."
    )
    if len(images) > THUMBNAILS:
        text += f" {THUMBNAILS:,} of them have a picture."
    return Section("map-of-images", "The map", MAP.format(text=escape(text), chart=chart))


def cluster_section(images: ReportImages, clusters: Clusters) -> Section:
    """For each cluster its size, its classes, and its most typical images."""
    names = images.label_names or ()
    labels = np.full(len(images), -1) if images.labels is None else images.labels
    html = paragraph("Groups by k-means of the features; of each the images nearest to its centre.")
    for number, (rows, mix) in enumerate(
        zip(clusters.typical, class_mix(clusters, labels, len(names)), strict=True), start=1
    ):
        classes = ", ".join(f"{names[c]} {100 * share:.0f} %" for c, share in mix[:4])
        html += f"<h3>Cluster {number}: {count(len(rows), 'image', 'images')}</h3>"
        html += (paragraph(classes, "faint") if classes else "") + strip(rows[:TYPICAL].tolist())
    return Section("clusters", "Clusters", html)


def shown_queries(images: ReportImages, seed: int) -> list[int]:
    """Some rows whose neighbours are shown, drawn by ``seed``."""
    return random_subset(len(images), QUERIES, seed).tolist()


def neighbour_section(rows: Sequence[int], neighbours: Neighbours) -> Section:
    """Some images, each with its nearest."""
    html = paragraph("Images drawn at random, each followed by what the encoder finds most like it, with the cosine.")
    parts = ""
    for row in rows:
        near, cosines = neighbours.rows[row, :SHOWN].tolist(), neighbours.similarity[row, :SHOWN].tolist()
        parts += strip([row, *near], ["", *(f"{cosine:.2f}" for cosine in cosines)], "group")
    return Section("neighbours", "Neighbours", f'{html}<div class="strip">{parts}</div>')


def page_data(
    images: ReportImages, neighbours: Neighbours, colours: Sequence[Colouring], first: Sequence[int], seed: int
) -> dict[str, Any]:
    """What page.js knows of the images; those in ``first`` have thumbnails, of the others a random choice."""
    wanted = list(dict.fromkeys(first))[:THUMBNAILS]
    chosen = set(wanted)
    rest = [row for row in random_subset(len(images), THUMBNAILS, seed).tolist() if row not in chosen]
    rows = sorted(wanted + rest[: THUMBNAILS - len(wanted)])
    return {
        "names": images.names,
        "neighbours": neighbours.rows[:, :SHOWN].tolist(),
        "colours": [colouring.data() for colouring in colours],
        "thumbnails": {row: thumbnail(images.image(row), LARGER if row in chosen else SIDE) for row in rows},
    }
