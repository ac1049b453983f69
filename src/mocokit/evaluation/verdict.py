"""The verdict on a finished run, in plain words."""

import math

from mocokit.evaluation.evaluator import Metrics
from mocokit.evaluation.scorecard import COLLAPSED


def verdict(loss_over_chance: float, encoder: Metrics, random_init: Metrics, queries: int = 0) -> str:
    """ "STATE: REASON", the state being learning, not learning or collapsed.

    ``loss_over_chance`` is the final loss as a share of its chance level. A gain of kNN within two standard errors, at
    most 1 / sqrt(queries), does not count.
    """
    rank, retrieval = encoder.scores["rankme"], encoder.scores["retrieval"]
    if rank < COLLAPSED:
        state, reason = "collapsed", f"features have an effective rank of {rank:.1f}"
    elif encoder.knn is not None and random_init.knn is not None:
        gain = 100 * (encoder.knn.top1 - random_init.knn.top1)
        noise = 100 / math.sqrt(max(1, queries))
        state = "learning" if gain > noise else "not learning"
        reason = f"kNN top-1 {100 * encoder.knn.top1:.1f} %, {gain:+.1f} points from random initialisation"
        if 0 < gain <= noise:
            reason += f", within the noise of {queries} queries"
    else:
        before = random_init.scores["retrieval"]
        better = retrieval > before or before == 1
        state = "learning" if better and loss_over_chance < 1 else "not learning"
        reason = f"two-view retrieval {100 * retrieval:.1f} %, {100 * before:.1f} % at random initialisation"
    return f"{state}: {reason}; loss at {100 * loss_over_chance:.0f} % of chance level"
