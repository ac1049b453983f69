"""The plan of a study: which subsets, seeds, labels and methods; from the options, and refused if it does not fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocokit.config import StudyConfig
from mocokit.data.long_tail import class_counts
from mocokit.data.notes import count
from mocokit.errors import UserError
from mocokit.studies.statistics import ALL

# A method has this one name in options, tables and plots, and words in sentences.
METHODS = {
    "raw-pixels": "raw pixels",
    "random-init": "random initialisation",
    "from-scratch": "training from scratch",
    "moco": "MoCo, frozen,",
    "moco-finetuned": "MoCo",
}
WITH_WEIGHTS = {"off-the-shelf": "off-the-shelf features", "moco-continued": "MoCo continued from the weights"}
# Of the options what figures depend on; in one directory it is the same for all trials.
IDENTITY = (
    "steps",
    "time_budget",
    "finetune_steps",
    "recipe",
    "backbone",
    "weights",
    "test_share",
    "split_by",
    "device",
)


@dataclass(frozen=True, order=True)
class Cell:
    """What one pretraining learns from, and its seed."""

    images: int
    imbalance: float
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"n{self.images}-r{self.imbalance:g}-s{self.seed}"


@dataclass(frozen=True)
class Trial:
    """A cell with how many training images of each class it has, and which ``labels`` a class are measured."""

    cell: Cell
    counts: dict[str, int]
    labels: tuple[str, ...]

    def request(self, common: dict[str, Any]) -> dict[str, Any]:
        """What the trial's process is told, as JSON; ``common`` is what all trials are told."""
        cell = {"images": self.cell.images, "imbalance": self.cell.imbalance, "seed": self.cell.seed}
        return {"cell": cell, "counts": self.counts, "labels": list(self.labels)} | common


@dataclass(frozen=True)
class Plan:
    """All trials, seed after seed, so that a study stopped early has compared everything with some of them, and of a
    seed the larger first; ``notes`` say what is left out."""

    trials: tuple[Trial, ...]
    methods: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """What is going to be done, for the user."""
        cells = [trial.cell for trial in self.trials]
        sizes, ratios, seeds = (sorted({getattr(c, name) for c in cells}) for name in ("images", "imbalance", "seed"))
        labels = max((trial.labels for trial in self.trials), key=len)
        return [
            f"{count(len(cells), 'trial', 'trials')}: {_list(f'{n:,}' for n in sizes)} images, "
            f"imbalance {_list(f'{r:g}' for r in ratios)} (0: as they are), {count(len(seeds), 'seed', 'seeds')}",
            f"labels a class: {_list(labels)}; methods: {_list(self.methods)}",
            *self.notes,
        ]


def make_plan(config: StudyConfig, labels: np.ndarray, names: Sequence[str]) -> Plan:
    """The trials that the options ask for, on training images with these ``labels`` (int64 [N], -1 for none) of classes
    with these ``names``.

    Raises:
        UserError: an option can't be read, or a subset does not fit the images.
    """
    available = np.bincount(labels[labels >= 0], minlength=len(names))
    ratios = _numbers("--imbalance", config.imbalance, float)
    budgets = _budgets(config.labels)
    seeds = range(config.seeds)
    sizes = _numbers("--sizes", config.sizes, int) if config.sizes else _default_sizes(available, ratios, seeds)
    trials, notes = [], []
    for size in sizes:
        for ratio in ratios:
            for seed in seeds:
                counts = _counts(available, size, ratio, seed)
                smallest = int(counts[counts > 0].min())
                fit = tuple(k for k in budgets if k == ALL or int(k) <= smallest)
                if out := [k for k in budgets if k not in fit]:
                    are = f"a class of {smallest}, so no {_list(out)} labels a class"
                    notes.append(f"{size:,} images at imbalance {ratio:g} have {are}")
                cell = Cell(int(counts.sum()), ratio, seed)
                trials.append(Trial(cell, {name: n for name, n in zip(names, counts.tolist(), strict=True) if n}, fit))
    once = {trial.cell: trial for trial in trials}.values()
    order = sorted(once, key=lambda t: (t.cell.seed, -t.cell.images, t.cell.imbalance))
    return Plan(tuple(order), _methods(config), tuple(dict.fromkeys(notes)))


def _counts(available: np.ndarray, images: int | None, imbalance: float, seed: int) -> np.ndarray:
    try:
        return class_counts(available, images, imbalance, seed)
    except UserError as error:
        text = str(error).replace("--limit", "--sizes").replace("this --seed", f"seed {seed}")
        raise UserError(f"{text} (--sizes {images}, --imbalance {imbalance:g}, seed {seed})") from None


def _default_sizes(available: np.ndarray, ratios: Sequence[float], seeds: range) -> list[int]:
    """A quarter, half and all of as many images as fit every imbalance and seed; those that leave no class empty."""
    all_of = [(ratio, seed) for ratio in ratios for seed in seeds]
    most = min(int(_counts(available, None, *each).sum()) for each in all_of)

    def fits(images: int) -> bool:
        try:
            return all(bool(class_counts(available, images, *each).any()) for each in all_of)
        except UserError:
            return False

    return [images for images in (most // 4, most // 2) if images and fits(images)] + [most]


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        values = sorted({kind(part) for part in text.split(",")})
        if not all(0 <= value < 1e9 for value in values) or (kind is int and 0 in values):
            raise ValueError
    except ValueError:
        raise UserError(f"{option} {text}: write numbers with commas between, such as 1,10,100") from None
    return values


def _budgets(text: str) -> list[str]:
    """Labels a class, ascending, "all" last."""
    parts = [part.strip() for part in text.split(",")]
    if any(part != ALL and not part.isdecimal() for part in parts):
        raise UserError(
            f"--labels {text}: write labels a class, such as 10,100,all; a table of labels is --labels-file"
        )
    numbers = _numbers("--labels", ",".join(k for k in parts if k != ALL), int) if set(parts) != {ALL} else []
    if 1 in numbers:
        raise UserError("--labels 1: training stops by a held-out label of each class; give 2 or more")
    return [*map(str, numbers), *([ALL] if ALL in parts else [])]


def _methods(config: StudyConfig) -> tuple[str, ...]:
    known = METHODS | (WITH_WEIGHTS if config.weights else {})
    asked = list(known) if config.methods == "all" else [part.strip() for part in config.methods.split(",")]
    if unknown := [name for name in asked if name not in known]:
        needs = " (it needs --weights)" if unknown[0] in WITH_WEIGHTS else ""
        raise UserError(f"--methods {unknown[0]}: is none of {', '.join(known)}{needs}")
    return tuple(name for name in known if name in asked)


def _list(items: Any) -> str:
    return ", ".join(items)
