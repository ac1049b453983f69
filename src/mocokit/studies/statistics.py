"""What the figures of several seeds say together: intervals, differences, labels saved, and the answer in sentences.

Pure functions of numbers; accuracies are fractions from 0 to 1, in ``{seed: accuracy}`` where seeds are paired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # the quantile of Student's t

MOST_SEEDS = 1000  # that a study is told to need
ALL = "all"  # labels
EQUAL = 1e-9  # shares of images, or their differences, that differ by less do so by rounding

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values with the half width of its 95 % interval: nan of one value, or of equal ones, as chance
    gives to few seeds, since accuracies are counts: of their spread nothing is known."""

    mean: float
    half_width: float
    n: int

    @property
    def sees_difference(self) -> bool:
        """Whether 0 lies outside of an interval that is known."""
        return abs(self.mean) > self.half_width


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of one value or more, with Student's interval."""
    n, half_width = len(values), math.nan
    if np.ptp(values) > EQUAL:
        half_width = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(float(np.mean(values)), half_width, n)


def paired_difference(of: BySeed, before: BySeed) -> Interval | None:
    """Of ``of`` minus ``before``, over the seeds that both have, which share subset and initialisation; None if none.

    What a seed does to both drops out, so the interval is narrower than those of the two means.
    """
    seeds = sorted(of.keys() & before.keys())
    return t_interval([of[seed] - before[seed] for seed in seeds]) if seeds else None


def relative_gap(balanced: BySeed, imbalanced: BySeed) -> Interval | None:
    """Δ(n, r) = (A(n, 1) - A(n, r)) / A(n, 1), of each seed, of features learned from as many images (Liu et al. 2022,
    arXiv 2110.05025, section 2.2)."""
    seeds = sorted(seed for seed in balanced.keys() & imbalanced.keys() if balanced[seed] > 0)
    return t_interval([1 - imbalanced[seed] / balanced[seed] for seed in seeds]) if seeds else None


def labels_needed(labels: Sequence[float], accuracies: Sequence[float], wanted: float) -> float:
    """Labels a class at which a curve of ``accuracies`` over ascending ``labels`` first has what is ``wanted``.

    Between two points it is a line over the logarithm of the labels. Infinite if no point has it ("more than all"); the
    first point if that has it already.
    """
    for index, accuracy in enumerate(accuracies):
        if accuracy >= wanted:
            if index == 0:
                return float(labels[0])
            before = accuracies[index - 1]
            share = (wanted - before) / (accuracy - before)
            return float(labels[index - 1] * (labels[index] / labels[index - 1]) ** share)
    return math.inf


def seeds_needed(difference: Interval) -> int | None:
    """Seeds for an interval that leaves out 0, should mean and spread stay; None if the spread is not known, or if
    there were more than `MOST_SEEDS`."""
    if math.isnan(difference.half_width):
        return None
    n = difference.n
    deviation = difference.half_width / stdtrit(n - 1, 0.975) * math.sqrt(n)
    counts = np.arange(2, MOST_SEEDS + 1)
    enough = stdtrit(counts - 1, 0.975) * deviation / np.sqrt(counts) < abs(difference.mean)
    return int(counts[enough.argmax()]) if enough.any() else None


def setting(images: int, imbalance: float, labels: str) -> str:
    """Where a comparison was made: "with 2,000 images, r = 100 and 10 labels a class"."""
    tail = {0.0: "classes as they are", 1.0: "balanced classes"}.get(imbalance, f"r = {imbalance:g}")
    many = "all labels" if labels == ALL else f"{labels} label{'s' * (labels != '1')} a class"
    return f"with {images:,} images, {tail} and {many}"


def verdict(difference: Interval, method: str, other: str) -> str:
    """What a difference of accuracies says, without the setting: "MoCo gains 8.1 ± 1.9 points over ... (n = 5)"."""
    mean, half = 100 * difference.mean, 100 * difference.half_width
    if difference.n == 1:
        return f"{method} is {mean:+.1f} points from {other} with the only seed; two seeds or more say how sure that is"
    if difference.sees_difference:
        word = "gains" if mean > 0 else "loses"
        against = "over" if mean > 0 else "against"
        return f"{method} {word} {abs(mean):.1f} ± {half:.1f} points {against} {other} (n = {difference.n})"
    if math.isnan(difference.half_width):
        if abs(difference.mean) < EQUAL:
            return f"no difference between {method} and {other} with any of {difference.n} seeds"
        same = f"{method} is the same {mean:+.1f} points from {other} with each of {difference.n} seeds"
        return f"{same}, too few to say how sure that is"
    needed = seeds_needed(difference)
    seeds = f"about {needed:,} seeds" if needed else f"more than {MOST_SEEDS:,} seeds"
    return (
        f"no difference that this study could see between {method} and {other} ({mean:+.1f} ± {half:.1f} points, "
        f"n = {difference.n}); {seeds} would be needed to see one of this size"
    )


def unlearned(gain: Interval, above: Interval | None) -> str:
    """What to say beside a ``gain`` of fine-tuning over training from scratch if it is not clearly ``above`` a linear
    probe of random initialisation; empty if it is, if that was not measured, or if there is no gain."""
    gains = gain.mean > 0 and (math.isnan(gain.half_width) or gain.sees_difference)
    if above is None or not gains or (above.mean > 0 and (above.n == 1 or above.sees_difference)):
        return ""
    half = "" if math.isnan(above.half_width) else f" ± {100 * above.half_width:.1f}"
    return (
        f", but is not clearly above a linear probe of random initialisation ({100 * above.mean:+.1f}{half} points, "
        f"n = {above.n}): the gain need not be MoCo's, as fine-tuning starts from a probe and training from scratch "
        "does not"
    )


def saved(labels: str, needed: float, fewest: float) -> str:
    """How many labels a class from scratch would need for what ``labels`` a class give; ``fewest`` were tried."""
    about = "no more than" if needed <= fewest else "about"
    many = "more than all" if math.isinf(needed) else f"{about} {needed:,.0f}"
    return f"for what it gets with {labels} labels a class, training from scratch needs {many}"
