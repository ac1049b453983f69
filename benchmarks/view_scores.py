"""Which score of a short run finds the views of a long one? From the lines that view_trials.py has written.

    python benchmarks/view_scores.py LINES.csv [--trial-images 16000] [--images 80000]

For each data set and score of the short runs: its rank correlation (Spearman) over the six views with the accuracy of
the long runs, and how many points the long runs lose that have the views it chooses, against the best of the six; of
all six views tried, and of the four that ``--choose-views`` tries. A view's long accuracy is the mean over the seeds;
± is half a 95 % interval over the seeds of the short runs, by Student's t. "never" keeps the default, "any" draws.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

from mocokit.auto.view_trials import STAGES
from mocokit.evaluation.scorecard import SCORES

View = tuple[str, float]  # colours and crop_min
DEFAULT: View = ("papers", 0.35)
CROPS = tuple(float(stage["crop_min"]) for stage in STAGES[1])  # what is tried beside the default's
SIGNS = {score.name: 1 if score.better == "higher" else -1 for score in SCORES}
GOOD: dict[str, Callable[[dict[str, str]], float]] = {
    "train_knn": lambda row: float(row["train_knn"]),
    "rotation": lambda row: float(row["rotation"]),
    "lidar": lambda row: float(row["lidar"]),
    "alpha": lambda row: -abs(float(row["alpha"]) - 1),  # its authors: the nearer to 1, the better
    **{name: lambda row, name=name, sign=sign: sign * float(row[name]) for name, sign in SIGNS.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--trial-images", type=int, default=16_000)
    parser.add_argument("--images", type=int, default=80_000)
    given = parser.parse_args()
    rows = [row for path in given.lines for row in csv.DictReader(path.open())]
    print("| Data | Score of the short run | Rank correlation | Lost, of six | Lost, of four |\n|---|---|---|---|---|")
    for data in dict.fromkeys(row["data"] for row in rows):
        of = [row for row in rows if row["data"] == data]
        short, long = ([row for row in of if int(row["images"]) == n] for n in (given.trial_images, given.images))
        for score, figures in judged(short, long).items():
            print(f"| {data} | {score} | " + " | ".join(figures) + " |")


def judged(short: list[dict[str, str]], long: list[dict[str, str]]) -> dict[str, list[str]]:
    """Of each score: its rank correlation, and the points lost by what it chooses, of six and of four."""
    true = long_accuracy(long)
    best = max(true.values())
    result = {
        "never": ["", *2 * [f"{best - true[DEFAULT]:.1f}"]],
        "any": ["", *2 * [f"{best - float(np.mean(list(true.values()))):.1f}"]],
    }
    for name, good in GOOD.items():
        correlations, of_six, of_four = [], [], []
        for trials in by_seed(short).values():
            scores = {view: good(row) for view, row in trials.items()}
            views = list(true)
            correlations.append(float(spearmanr([scores[v] for v in views], [true[v] for v in views]).statistic))
            of_six.append(best - true[max(scores, key=lambda view: scores[view])])
            of_four.append(best - true[chosen_of_four(scores)])
        result[name] = [spread(correlations, 2), spread(of_six), spread(of_four)]
    return result


def long_accuracy(rows: list[dict[str, str]]) -> dict[View, float]:
    """Accuracy of each view's long runs in per cent, the mean over seeds."""
    of: dict[View, list[float]] = defaultdict(list)
    for row in rows:
        of[view_of(row)].append(100 * float(row["test_knn"]))
    return {view: float(np.mean(values)) for view, values in of.items()}


def by_seed(rows: list[dict[str, str]]) -> dict[str, dict[View, dict[str, str]]]:
    seeds: dict[str, dict[View, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        seeds[row["seed"]][view_of(row)] = row
    return seeds


def view_of(row: Mapping[str, str]) -> View:
    return row["colours"], float(row["crop_min"])


def chosen_of_four(scores: dict[View, float]) -> View:
    """What `mocokit.auto.view_trials` would take: the better colours, then the best crop with them."""
    colours = max(("papers", "mild"), key=lambda name: scores[name, DEFAULT[1]])
    crop = max((DEFAULT[1], *CROPS), key=lambda crop: scores[colours, crop])
    return colours, crop


def spread(values: list[float], digits: int = 1) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    main()
