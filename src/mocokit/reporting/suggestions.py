"""What a person should look into: images that may be wrong, each kind by one rule; none is deleted or called wrong."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mocokit.evaluation.near_duplicates import SIDE
from mocokit.files import printable, write_csv
from mocokit.reporting.duplicates import Duplicates
from mocokit.reporting.images import ReportImages
from mocokit.reporting.label_errors import OTHER, TIMES, label_errors
from mocokit.reporting.neighbours import Neighbours
from mocokit.reporting.quality import quality

OUTLIER_K, MOST_OUTLIERS = 10, 48
OUTLIER_DEVIATIONS, BLUR_DEVIATIONS = 2.5, 3  # robust: of the median
BLANK, DARK, BRIGHT = 4, 64, 192  # gray levels of 255
TIMES_LONGER = 2  # than usual


@dataclass(frozen=True)
class Suggestion:
    """Images to look at, the most striking first.

    ``key`` names the file, ``title`` and ``definition`` are for the reader. ``rows`` [M] int64 of the images;
    ``columns``: what is known of each, [M] values by name, of which the first is the number to show; ``groups`` [M]
    int64: images that belong together have one number, from 1 on and ascending; None where each stands for itself.
    """

    key: str
    title: str
    definition: str
    rows: np.ndarray
    columns: Mapping[str, Sequence[object]]
    groups: np.ndarray | None = None


def suggestions(images: ReportImages, neighbours: Neighbours) -> list[Suggestion]:
    """All kinds, always in this order, also those that find nothing; leaks only if there are several splits, label
    errors only if there are classes."""
    found = _duplicates(images)
    if images.labels is not None:
        found.append(_label_errors(images, images.labels, neighbours))
    return [*found, _outliers(neighbours), *_quality(images)]


def write_list(folder: Path, suggestion: Suggestion, images: ReportImages) -> Path:
    """Write ``folder``/KEY.csv: group, image, split, class (empty without a label) and the columns; gives its path."""
    rows = suggestion.rows
    columns: dict[str, Sequence[object]] = {}
    if suggestion.groups is not None:
        columns["group"] = suggestion.groups.tolist()
    columns["image"], columns["split"] = [images.names[row] for row in rows], images.splits[rows].tolist()
    if images.labels is not None and (names := images.label_names):
        columns["class"] = ["" if label < 0 else printable(names[label]) for label in images.labels[rows]]
    columns |= suggestion.columns
    path = folder / f"{suggestion.key}.csv"
    # All text in quotes: before Python 3.13 a name with a carriage return would have none.
    write_csv(path, list(columns), zip(*columns.values(), strict=True), csv.QUOTE_NONNUMERIC)
    return path


def _duplicates(images: ReportImages) -> list[Suggestion]:
    found = Duplicates(images)
    copies = np.bincount(found.first, minlength=len(images))[found.first]
    rows, groups = _grouped(found.first, copies)
    text = "The pixels, as they are stored, are the same."
    exact = Suggestion("exact-duplicates", "Exact duplicates", text, rows, {"copies": copies[rows].tolist()}, groups)

    rows, groups = _grouped(found.near, found.correlation)
    small = f", and images of less than {SIDE} pixels a side are not" if images.sizes.min() < SIDE else ""
    text = (
        f"Gray thumbnails ({SIDE} x {SIDE}, less the means of rows and columns) correlate by {found.pairs.least:.3f} "
        "or more, which depends on how alike nearest images usually are; of exact duplicates the first is compared"
        f"{small}."
    )
    number = {"correlation": _rounded(found.correlation[rows])}
    near = Suggestion("near-duplicates", "Near-duplicates", text, rows, number, groups)

    names, split = np.unique(images.splits, return_inverse=True)
    if len(names) == 1:
        return [exact, near]
    there = np.zeros((len(images), len(names)), bool)
    there[found.all, split] = True
    correlation = np.where(copies > 1, 1, found.correlation)
    rows, groups = _grouped(found.all, correlation, there.sum(axis=1) > 1)
    text = f"Exact or near-duplicates that are in different splits ({', '.join(names)})."
    number = {"correlation": _rounded(correlation[rows])}
    return [exact, near, Suggestion("leaks", "Leaks between splits", text, rows, number, groups)]


def _grouped(group: np.ndarray, value: np.ndarray, wanted: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows in groups of two or more, those of the greatest ``value`` first, and the number of the group of each.

    ``group`` [N] is named by one of its rows; ``wanted`` [N] says of these names which count.
    """
    count = len(group)
    several = np.bincount(group, minlength=count) > 1
    rows = np.flatnonzero((several if wanted is None else several & wanted)[group])
    greatest = np.zeros(count)
    np.maximum.at(greatest, group, value)
    rows = rows[np.lexsort((rows, group[rows], -greatest[group[rows]]))]
    return rows, np.cumsum(np.diff(group[rows], prepend=-1) != 0)


def _label_errors(images: ReportImages, labels: np.ndarray, neighbours: Neighbours) -> Suggestion:
    found, names = label_errors(labels, neighbours), images.label_names or ()
    text = (
        f"Of the {found.k} nearest images with a label at least {OTHER:.0%} are of one other class, and this share is "
        f"at least {TIMES} times that of the image's own class (of a small class: of those of it that could be near)."
    )
    columns: dict[str, Sequence[object]] = {
        "share": _rounded(found.share),
        "suggested class": [printable(names[label]) for label in found.suggested],
        "own share": _rounded(found.own),
    }
    return Suggestion("label-errors", "Possible label errors", text, found.rows, columns)


def _outliers(neighbours: Neighbours) -> Suggestion:
    k = min(OUTLIER_K, neighbours.similarity.shape[1])
    # Rounded to what float32 can give, so that equal images are at equal distances.
    distance = (1 - neighbours.similarity[:, k - 1]).numpy().round(6) if k else np.zeros(len(neighbours.rows))
    middle, deviation = _middle(distance)
    rows = _ordered(distance > middle + OUTLIER_DEVIATIONS * deviation, -distance)[:MOST_OUTLIERS]
    text = (
        f"The distance (1 - cosine of features) to the k-th nearest image, k = {k}, is more than {OUTLIER_DEVIATIONS} "
        f"robust deviations (1.48 MAD) above the median; at most {MOST_OUTLIERS} are listed."
    )
    return Suggestion("outliers", "Outliers", text, rows, {"distance": _rounded(distance[rows])})


def _quality(images: ReportImages) -> list[Suggestion]:
    seen = quality(images)
    blank = seen.deviation < BLANK
    sharpness = np.log(np.where(blank, np.nan, seen.sharpness).clip(min=1e-6))
    middle, deviation = _middle(sharpness)
    blurred = (sharpness < middle - BLUR_DEVIATIONS * deviation) & (seen.laplacian < np.median(seen.laplacian))
    times = images.sizes.max(axis=1) / images.sizes.min(axis=1)
    longest = TIMES_LONGER * float(np.median(times))

    def kind(title: str, text: str, found: np.ndarray, number: str, value: np.ndarray, sign: int = 1) -> Suggestion:
        rows = _ordered(found, sign * value)
        key = title.lower().replace(" ", "-")
        return Suggestion(key, title, text, rows, {number: _rounded(value[rows])})

    return [
        kind("Blank", f"The deviation of gray is below {BLANK} of 255.", blank, "deviation", seen.deviation),
        kind(
            "Too dark",
            f"99 % of the pixels are darker than gray {DARK} of 255, and the image isn't blank.",
            ~blank & (seen.bright < DARK),
            *("99th percentile", seen.bright),
        ),
        kind(
            "Too bright",
            f"99 % of the pixels are gray {BRIGHT} of 255 or brighter, and the image isn't blank.",
            ~blank & (seen.dark >= BRIGHT),
            *("1st percentile", seen.dark, -1),
        ),
        kind(
            "Blurred",
            "Sharpness, the mean square of the Laplacian of gray by that of its gradient, is more than "
            f"{BLUR_DEVIATIONS} robust deviations (1.48 MAD) of its logarithm below the median, and the Laplacian "
            "itself is below its median.",
            blurred,
            *("sharpness", seen.sharpness),
        ),
        kind(
            "Odd shapes",
            f"The longer side is more than {longest:.2f} times the shorter one, {TIMES_LONGER} times the median.",
            times > longest,
            *("times longer", times, -1),
        ),
    ]


def _middle(values: np.ndarray) -> tuple[float, float]:
    """Median of the numbers among ``values``, and their standard deviation by the median absolute deviation (MAD);
    infinite if that is 0, since then there is no scale by which anything is far."""
    values = values[~np.isnan(values)]
    if not len(values):
        return 0.0, np.inf
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle))) or np.inf


def _ordered(found: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Rows where ``found`` [N] is true, the least of ``by`` first, of equal ones the lower row."""
    rows = np.flatnonzero(found)
    return rows[np.argsort(by[rows], kind="stable")]


def _rounded(values: np.ndarray) -> list[float]:
    """To six decimals."""
    return [round(value, 6) for value in values.tolist()]
