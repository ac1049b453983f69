"""The verdict on a finished run, in plain words."""

import math

from torch import Tensor

from mocokit.evaluation.evaluator import Metrics
from mocokit.evaluation.metrics import mcnemar, wilson_interval
from mocokit.evaluation.scorecard import COLLAPSED

LEVEL, Z = 0.05, 1.645  # how often chance may pass for a gain, and how many standard deviations that is
SEEDS = 0.01  # standard deviation of the difference of two untrained networks' accuracies (docs/LOG.md)


def verdict(loss_over_chance: float, encoder: Metrics, random_init: Metrics) -> str:
    """ "STATE: REASON", the state being learning, not learning or collapsed.

    ``loss_over_chance`` is the final loss as a share of its chance level. Encoder and random initialisation were
    measured on the same images: by kNN, or by two-view retrieval without labels. Learning takes a gain that chance
    would hardly give (`mcnemar`), nor would another initialisation, which makes up to 1.6 points, or doubles a share
    of less. Without labels it also takes a loss below chance.
    """
    share, before = (float(metrics.right.double().mean()) for metrics in (encoder, random_init))
    better, worse = mcnemar(encoder.right, random_init.right), mcnemar(random_init.right, encoder.right)
    limit = math.hypot(min(Z * SEEDS, before), Z * _standard_error(encoder.right, random_init.right))
    learned = better < LEVEL and share - before > limit
    if encoder.knn is not None:
        gain = 100 * (share - before)
        reason = f"kNN top-1 {_percent(encoder.right)}, {gain:+.1f} points from random initialisation"
    else:
        learned = learned and loss_over_chance < 1
        reason = f"two-view retrieval {_percent(encoder.right)}, {_percent(random_init.right)} at random initialisation"
    if min(better, worse) >= LEVEL:
        reason += f": no difference that could be seen on {len(encoder.right):,} images"
    elif 0 < share - before <= limit:
        reason += ": another initialisation may give as much"
    state = "learning" if learned else "not learning"
    if (rank := encoder.scores["rankme"]) < COLLAPSED:
        state, reason = "collapsed", f"features have an effective rank of {rank:.1f}"
    return f"{state}: {reason}; loss at {100 * loss_over_chance:.0f} % of chance level"


def _standard_error(right: Tensor, before: Tensor) -> float:
    """Of the difference of two accuracies on the same images."""
    difference = right.double() - before.double()
    return float(difference.std(correction=0)) / math.sqrt(len(difference))


def _percent(right: Tensor) -> str:
    """Share of images, with its interval."""
    share = float(right.double().mean())
    low, high = wilson_interval(share, len(right))
    return f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
