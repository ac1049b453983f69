"""What a study leaves: trials.csv, summary.csv and answer.md, from the results of its trials."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mocokit.files import read_json, write_csv, write_text
from mocokit.studies.plan import METHODS, WITH_WEIGHTS
from mocokit.studies.statistics import (
    ALL,
    BySeed,
    Interval,
    labels_needed,
    paired_difference,
    relative_gap,
    saved,
    setting,
    t_interval,
    unlearned,
    verdict,
)
from mocokit.studies.trial import LEARNED, RESULT

NAMES = METHODS | WITH_WEIGHTS
COLUMNS = ("trial", "images", "imbalance", "seed", "method", "measure", "labels", "figure", "accuracy", "seconds")
SUMMARY = ("images", "imbalance", "method", "measure", "labels", "figure", "statistic", "mean", "half_width", "n")
MEAN, DIFFERENCE, GAP = "mean", "minus from-scratch", "relative gap"


class Setting(NamedTuple):
    """What the seeds of a figure have in common."""

    images: int
    imbalance: float
    method: str
    measure: str
    labels: str
    figure: str


class Comparison(NamedTuple):
    """A statistic over the seeds of a setting."""

    setting: Setting
    statistic: str
    interval: Interval


def read_rows(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of all trials that are done, with what their results say of all of a trial's rows."""
    rows = []
    for directory in directories:
        if result := read_json(directory / RESULT):
            of_trial = {"trial": directory.name} | result["cell"]
            where = {"machine": result["machine"], "versions": json.dumps(result["versions"])}
            rows += [of_trial | row | where for row in result["rows"]]
    return rows


def by_setting(rows: Iterable[dict[str, Any]]) -> dict[Setting, dict[int, float]]:
    """Accuracies of the seeds of each setting, sorted."""
    found: dict[Setting, dict[int, float]] = defaultdict(dict)
    for row in rows:
        key = Setting(*(row[name] for name in Setting._fields))
        found[key][row["seed"]] = row["accuracy"]
    return dict(sorted(found.items()))


def compare(figures: dict[Setting, dict[int, float]]) -> list[Comparison]:
    """Means; differences of fine-tuning from training from scratch; relative gaps between balanced and imbalanced."""
    found = []
    for key, values in figures.items():
        found.append(Comparison(key, MEAN, t_interval(list(values.values()))))
        others: list[tuple[str, Interval | None]] = []
        if key.measure == "finetune" and key.method != "from-scratch":
            others.append((DIFFERENCE, paired_difference(values, figures.get(key._replace(method="from-scratch"), {}))))
        if key.measure == "probe-all" and key.method in LEARNED and key.imbalance > 1:
            others.append((GAP, relative_gap(figures.get(key._replace(imbalance=1.0), {}), values)))
        found += [Comparison(key, statistic, interval) for statistic, interval in others if interval]
    return found


def write_tables(out: Path, rows: Sequence[dict[str, Any]], comparisons: Iterable[Comparison]) -> None:
    """Write ``trials.csv`` and ``summary.csv``."""
    columns = (*COLUMNS, "machine", "versions")
    write_csv(out / "trials.csv", columns, ([row[name] for name in columns] for row in rows))
    summary = (
        [*c.setting, c.statistic, c.interval.mean, _known(c.interval.half_width), c.interval.n] for c in comparisons
    )
    write_csv(out / "summary.csv", SUMMARY, summary)


def _known(number: float) -> float | str:
    return "" if math.isnan(number) else number


def answers(figures: dict[Setting, dict[int, float]], classes: int) -> list[str]:
    """The sentences: what MoCo, fine-tuned, gains over training from scratch; the labels that it saves; the gaps."""
    lines, saves, differences = [], [], []
    tuned = [key for key in figures if key[2:] == ("moco-finetuned", "finetune", key.labels, "top1")]
    for key in sorted(tuned, key=lambda key: (key.images, key.imbalance, _labels(key, classes))):
        scratch = key._replace(method="from-scratch")
        difference = paired_difference(figures[key], figures.get(scratch, {}))
        if difference:
            differences.append(difference)
            text = verdict(difference, NAMES["moco-finetuned"], NAMES["from-scratch"])
            untrained = figures.get(key._replace(method="random-init", measure="probe"), {})
            text += unlearned(difference, paired_difference(figures[key], untrained))
            lines.append(f"{setting(key.images, key.imbalance, key.labels).capitalize()}, {text}.")
        curve = sorted(
            (_labels(other, classes), _mean(figures[other]))
            for other in figures
            if other._replace(labels=key.labels) == scratch
        )
        if len(curve) > 1 and key.labels != ALL:
            budgets, accuracies = zip(*curve, strict=True)
            needed = labels_needed(budgets, accuracies, _mean(figures[key]))
            where = setting(key.images, key.imbalance, key.labels).rpartition(" and ")[0]
            saves.append(f"{where.capitalize()}, {saved(key.labels, needed, budgets[0])}.")
    for comparison in compare(figures):
        key, statistic, gap = comparison
        if statistic == GAP and key.figure == "top1":
            where = f"Δ({key.images:,}, {key.imbalance:g})"
            half = "" if math.isnan(gap.half_width) else f" ± {100 * gap.half_width:.1f}"
            saves.append(f"{where} of the features by {key.method}: {100 * gap.mean:.1f}{half} % (n = {gap.n}).")
    return _in_all(differences) + lines + saves + _of_features(figures) + _of_images(figures)


def _in_all(differences: Sequence[Interval]) -> list[str]:
    """How often MoCo gains and loses, where there is more to count than a reader sees."""
    if len(differences) < 4 or min(difference.n for difference in differences) == 1:
        return []
    seen = [difference.mean > 0 for difference in differences if difference.sees_difference]
    count = (
        f"gains over training from scratch in {sum(seen)} of {len(differences)} settings, loses in {seen.count(False)}"
    )
    return [f"MoCo {count}; in {len(differences) - len(seen)} this study could see no difference."]


def _of_features(figures: dict[Setting, dict[int, float]]) -> list[str]:
    """Whether features of one's own are worth it: linear probes of the largest subset's labels, by imbalance."""
    lines, known = [], ("raw-pixels", "random-init", "off-the-shelf")
    against = {"moco": known, "moco-continued": known[2:]}
    for key, values in figures.items():
        largest = max(other.images for other in figures if other.imbalance == key.imbalance)
        if key == (largest, key.imbalance, key.method, "probe", ALL, "top1"):
            for method in against.get(key.method, ()):
                if difference := paired_difference(values, figures.get(key._replace(method=method), {})):
                    where = setting(key.images, key.imbalance, ALL).capitalize()
                    lines.append(f"{where}, a probe says: {verdict(difference, NAMES[key.method], NAMES[method])}.")
    return lines


def _of_images(figures: dict[Setting, dict[int, float]]) -> list[str]:
    """Whether more images help: subsets are nested, so their differences are paired, too."""
    lines = []
    for key, values in figures.items():
        if key[2:] == ("moco-finetuned", "finetune", ALL, "top1"):
            smaller = [other.images for other in figures if other._replace(images=key.images) == key]
            before = max((images for images in smaller if images < key.images), default=0)
            if difference := paired_difference(values, figures.get(key._replace(images=before), {})):
                where = setting(key.images, key.imbalance, ALL).partition(" images, ")[2]
                text = verdict(difference, f"MoCo with {key.images:,} images", f"MoCo with {before:,}")
                lines.append(f"With {where}, {text}.")
    return lines


def _labels(key: Setting, classes: int) -> float:
    """Labels a class; of all the mean."""
    return key.images / classes if key.labels == ALL else float(key.labels)


def _mean(values: BySeed) -> float:
    return t_interval(list(values.values())).mean


def write_answer(
    out: Path, title: str, sentences: Sequence[str], comparisons: Iterable[Comparison], notes: Sequence[str]
) -> None:
    """Write ``answer.md``: sentences, the table of top-1 accuracies, and what is left out."""
    head = "images | imbalance | labels a class | measure | method | top-1, % | seeds"
    table = [f"| {head} |", f"|{'---|' * head.count('|')}---|"]
    for key, statistic, interval in comparisons:
        if statistic == MEAN and key.figure == "top1":
            half = "" if math.isnan(interval.half_width) else f" ± {100 * interval.half_width:.1f}"
            cells = f"{key.images:,} | {key.imbalance:g} | {key.labels} | {key.measure} | {key.method}"
            table.append(f"| {cells} | {100 * interval.mean:.1f}{half} | {interval.n} |")
    about = (
        "± is half a 95 % interval (Student's t over seeds; differences are of pairs with the same seed); each holds "
        "by itself, one of twenty misses; one seed, or equal figures, have none. Imbalance is the largest class by the "
        "smallest, 0: classes as they are. Δ is (A(n, 1) - A(n, r)) / A(n, 1) of linear probes on all training images, "
        "probe-all (Liu et al. 2022, arXiv 2110.05025)."
    )
    blocks = [f"# {title}", *("\n".join(f"- {line}" for line in part) for part in (sentences, notes) if part)]
    write_text(out / "answer.md", "\n\n".join([*blocks, "\n".join(table), about]) + "\n")
