"""How well features tell what should not matter: folder, size, brightness, file format, quality, camera and date."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mocokit.console import progress
from mocokit.data.sampler import generator
from mocokit.data.shard_readers import PARQUET, TAR
from mocokit.evaluation.logistic import logistic_path
from mocokit.evaluation.metrics import mcnemar, wilson_interval
from mocokit.evaluation.probe import MAX_FOLDS, choose_l2
from mocokit.evaluation.splits import stratified_folds, stratified_holdout
from mocokit.evaluation.verdict import LEVEL
from mocokit.reporting.file_facts import FileFacts
from mocokit.reporting.images import ReportImages

LEAST = 10  # images of a value that is asked for; half of them train
MOST_VALUES = 20  # that are asked for, those with most images
LABEL = "class"
FEW = 500  # training images up to which all folds choose the penalty, not only the first


@dataclass(frozen=True)
class Shortcut:
    """How well a linear probe of features tells one thing on images that it was not trained on.

    Shares are from 0 to 1, intervals 95 % (`wilson_interval`).
    """

    name: str  # what is told, such as "folder"
    values: tuple[str, ...]  # one of which is told: categories, or ranges of a number with as equal shares as can be
    left_out: int  # images that were looked at without a value, or with one of too few images
    images: int  # on which is measured; as many train
    right: float
    interval: tuple[float, float]
    untrained: float  # by random initialisation, on the same images
    untrained_interval: tuple[float, float]
    chance: float  # the share of the largest value
    by_class: float | None  # by naming the most common value of an image's class; None without classes
    change: str | None  # "easier" or "harder" to tell by training, if `mcnemar` sees it (Bonferroni's level)

    def __str__(self) -> str:
        low, high = (f"{100 * limit:.0f}" for limit in self.interval)
        by_class = "" if self.by_class is None else f"the class alone tells it in {100 * self.by_class:.0f} %, "
        return (
            f"the features tell the {self.name} (one of {len(self.values)}) in {100 * self.right:.0f} % of cases "
            f"({low} to {high} %), random initialisation in {100 * self.untrained:.0f} %, {by_class}"
            f"chance is {100 * self.chance:.0f} %" + f": training made it {self.change} to tell" * bool(self.change)
        )


class Shortcuts(NamedTuple):
    """What is ``told`` of some of all images; the class, as a yardstick, where there are two; what was left out."""

    told: list[Shortcut]
    label: Shortcut | None
    notes: list[str]


class _Values(NamedTuple):
    """``codes`` [n] int64 are indices of ``names``, -1 of an image without a value."""

    codes: np.ndarray
    names: Sequence[str]


def shortcuts(
    images: ReportImages, features: Tensor, untrained: Tensor, facts: Mapping[int, FileFacts], seed: int
) -> Shortcuts:
    """What the features tell, by logistic regression on a random half of the images, stratified by what is told.

    The penalty is chosen within that half; ``seed`` draws both. Numbers are told as one of three ranges. What has a
    single value is left out, and so are folders that follow from class and split, which are no nuisance of their own.
    Features that tell such things may be shortcuts (Geirhos et al. 2020, doi 10.1038/s42256-020-00257-z), above all
    where the class alone tells them, too. Bursts, copies, tiles are in both halves: an image may be told by its twin.

    Args:
        features, untrained: [N, D] float32 of ``images``, those of the encoder and of its random initialisation.
        facts: of the rows that are looked at, see `read_facts`.
    """
    rows = np.array(list(facts), np.int64)
    found, notes = _nuisances(images, facts)
    classes = None if images.labels is None else images.labels[rows]
    if classes is not None and images.label_names is not None:
        found[LABEL] = _Values(classes, images.label_names)
    asked = {name: values for name, of_all in found.items() if len((values := _common(of_all)).names) > 1}
    told, x = {}, [part[torch.from_numpy(rows)] for part in (features, untrained)]
    with progress("what features tell") as report:
        for done, (name, values) in enumerate(asked.items(), 1):
            told[name] = _tell(name, values, x, None if name == LABEL else classes, seed, LEVEL / len(asked))
            report(done, len(asked))
    label = told.pop(LABEL, None)
    return Shortcuts(list(told.values()), label, notes)


def _nuisances(images: ReportImages, facts: Mapping[int, FileFacts]) -> tuple[dict[str, _Values], list[str]]:
    """The values of each nuisance, and why there are none of folders."""
    rows, files = list(facts), list(facts.values())
    height, width = images.sizes[rows].T
    sides = [max(file.size or images.sizes[row].tolist()) for row, file in facts.items()]
    brightness = [round(100 / 255 * float(images.image(row).mean()), 1) for row in rows]
    folders, notes = _folders(images)
    return {
        **{name: _categories([of_all[row] for row in rows]) for name, of_all in folders.items()},
        "image size": _ranges(sides, " pixels"),  # the longer side
        "aspect ratio": _ranges((width / height).round(2).tolist()),
        "mean brightness": _ranges(brightness, " %"),
        "file format": _categories([file.format for file in files]),
        "JPEG quality": _ranges([file.quality for file in files]),
        "camera": _categories([file.camera for file in files]),
        "date taken": _ranges([file.taken for file in files]),
    }, notes


def _folders(images: ReportImages) -> tuple[dict[str, list[str]], list[str]]:
    """Of all N images the top folder and, if that is another, the folder itself, without levels that follow from class
    and split; a note if all do."""
    levels = list(zip_longest(*(name.split("/")[:-1] for name in images.names), fillvalue=""))
    labels = np.full(len(images), -1) if images.labels is None else images.labels
    given = list(zip(labels.tolist(), images.splits.tolist(), strict=True))
    cells = len(set(given))
    if free := [level for level in levels if len(set(zip(level, given, strict=True))) > cells]:
        paths = ["/".join(filter(None, parts)) or "." for parts in zip(*free, strict=True)]
        name = "shard" if all(path.endswith((PARQUET, TAR)) for path in paths) else "folder"
        several = len(set(free[0])) < len(set(paths))
        return ({"top folder": [folder or "." for folder in free[0]]} if several else {}) | {name: paths}, []
    if any(len(set(level)) > 1 for level in levels):
        return {}, ["folders are not asked for: they follow from class and split, so that what tells one tells both"]
    return {}, []


def _categories(values: Sequence[str | None]) -> _Values:
    names, codes = np.unique([value or "" for value in values], return_inverse=True)
    return _Values(np.where([value is None for value in values], -1, codes), names.tolist())


def _ranges(values: Sequence[float | datetime | None], unit: str = "") -> _Values:
    """Three ranges with shares as equal as can be without parting equal numbers; None is in none."""
    known = np.array([value is not None for value in values])
    codes = np.full(len(values), -1)
    if not known.any():
        return _Values(codes, [])
    numbers = np.array([value for value in values if value is not None])
    distinct, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    below = counts.cumsum()[:-1] / len(numbers)  # at each cut between two numbers
    cuts = np.unique([np.abs(below - share).argmin() for share in (1 / 3, 2 / 3)] if len(below) else []).astype(int)
    codes[known] = np.searchsorted(cuts, place)
    limits = zip(distinct[[0, *(cuts + 1)]].tolist(), distinct[[*cuts, -1]].tolist(), strict=True)
    names = [f"{low}" if low == high else f"{low} to {high}" for low, high in limits]
    return _Values(codes, [name + unit for name in names])


def _common(values: _Values) -> _Values:
    """The values of enough images alone."""
    counts = np.bincount(values.codes[values.codes >= 0], minlength=len(values.names))
    most = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    kept = np.sort(most[counts[most] >= LEAST])
    codes = np.full(len(values.names) + 1, -1)  # the last is that of -1
    codes[kept] = np.arange(len(kept))
    return _Values(codes[values.codes], [values.names[value] for value in kept])


def _tell(
    name: str, values: _Values, features: Sequence[Tensor], classes: np.ndarray | None, seed: int, level: float
) -> Shortcut:
    """Of ``features`` [n, D], the encoder's and those of random initialisation, and ``classes`` [n] or None."""
    known = torch.from_numpy(values.codes >= 0)
    y = torch.from_numpy(values.codes)[known]
    test = stratified_holdout(y, 0.5, generator(seed, f"tell {name}"))
    folds = stratified_folds(y[~test], MAX_FOLDS, generator(seed, f"folds to tell {name}"))
    folds = folds if len(folds[0]) <= FEW else folds[:1]
    right, before = (_right(x[known], y, test, folds, len(values.names)) for x in features)
    share, untrained = float(right.double().mean()), float(before.double().mean())
    easier, harder = mcnemar(right, before) < level, mcnemar(before, right) < level
    return Shortcut(
        name,
        tuple(values.names),
        left_out=len(values.codes) - len(y),
        images=len(right),
        right=share,
        interval=wilson_interval(share, len(right)),
        untrained=untrained,
        untrained_interval=wilson_interval(untrained, len(right)),
        chance=float(y[test].bincount().max()) / len(right),
        by_class=None if classes is None else _by_class(torch.from_numpy(classes)[known] + 1, y, test),
        change="easier" if easier else "harder" if harder else None,
    )


def _right(x: Tensor, y: Tensor, test: Tensor, folds: Sequence[Tensor], values: int) -> Tensor:
    """Which of the ``test`` images [M] are told right after training on the others, whose ``folds`` validate."""
    train, labels = x[~test], y[~test]
    l2 = choose_l2([((train[~fold], labels[~fold]), (train[fold], labels[fold])) for fold in folds], values)
    (classifier,) = logistic_path(train, labels, values, [l2])
    return classifier.scores(x[test]).argmax(dim=1) == y[test]


def _by_class(classes: Tensor, y: Tensor, test: Tensor) -> float:
    """How often the most common value among training images of the same class is right."""
    counts = torch.zeros(int(classes.max()) + 1, int(y.max()) + 1)
    counts.index_put_((classes[~test], y[~test]), torch.ones(int((~test).sum())), accumulate=True)
    return float((counts.argmax(dim=1)[classes[test]] == y[test]).double().mean())
