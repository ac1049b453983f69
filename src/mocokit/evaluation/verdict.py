"""The verdict on a finished run, in plain words."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from mocokit.data.notes import count
from mocokit.evaluation.baselines import row_name
from mocokit.evaluation.evaluator import Metrics
from mocokit.evaluation.metrics import mcnemar, wilson_interval
from mocokit.evaluation.scorecard import COLLAPSED

LEVEL, Z = 0.05, 1.645  # how often chance may pass for a gain, and how many standard deviations that is
# Standard deviation of the difference of two untrained networks, beside what the choice of images does (docs/LOG.md).
KNN_SEEDS, RETRIEVAL_SEEDS = 0.02, 0.01

Check = tuple[float, float, float]  # kNN during training: top-1 and the limits of its interval


def verdict(
    loss_over_chance: float | None,
    encoder: Metrics,
    random_init: Metrics,
    simple: Mapping[str, Metrics] | None = None,
    *,
    given: Metrics | None = None,
    largest_class: Tensor | None = None,
    checks: Sequence[Check] = (),
    channels: int = 3,
) -> str:
    """ "STATE: REASON; loss at N % of chance level", and what is wrong, with the way out.

    The state, learning, not learning, hurt or collapsed, says what training did to the network, unless there are too
    few images to tell, or all are but alike, so that random features lie on one line, too: encoder and random
    initialisation were measured on the same ones, by kNN, or by two-view retrieval without labels. Learning takes a
    gain that chance would hardly give (`mcnemar`), nor would another initialisation, which makes up to 3.3 points of
    kNN and 1.6 of retrieval, or doubles a share of less. Without labels it also takes a loss below chance. Fewer than
    five images are too few to tell.

    Of a run that went on from ``given`` weights it says whether that helped: they take the place of the random
    initialisation, and hurt means that `mcnemar` sees a loss against them.

    With labels it is also said what training was not good for, whatever the state: a run may well be learning and not
    yet worth its features.

    - The features are no better than the better of the ``simple`` ones, or than always naming the largest class, of
      which ``largest_class`` [M] bool says where that is right: `mcnemar` sees no gain.
    - The loss is below chance, but kNN fell: it is below the random initialisation by as much as a gain would take, or
      the last of the ``checks`` has its whole interval below that of the best. Then something simple may tell views
      apart, such as colour (Chen et al. 2020, arXiv 2002.05709, section 3.2), and training longer does not help, unless
      the last check is as clearly above the lowest.

    Args:
        loss_over_chance: the final loss as a share of its chance level; None while a queue fills with keys.
        encoder, random_init, given, simple: figures on the same images; ``simple`` by key of results.
        largest_class, checks: see above.
        channels: of the images.
    """
    below_chance = loss_over_chance is not None and loss_over_chance < 1
    reference = given or random_init
    share, before = _share(encoder.right), _share(reference.right)
    better, worse = mcnemar(encoder.right, reference.right), mcnemar(reference.right, encoder.right)
    seeds = RETRIEVAL_SEEDS if encoder.knn is None else KNN_SEEDS
    luck = math.hypot(min(Z * seeds, before), Z * _standard_error(encoder.right, reference.right))
    limit = 0.0 if given else luck  # given weights are not drawn
    learned = better < LEVEL and share - before > limit
    if encoder.knn is not None:
        reason = f"kNN top-1 {_percent(encoder.right)}, {100 * (share - before):+.1f} points from "
        reason += f"the given weights ({100 * before:.1f} %), " if given else ""
        reason += f"{100 * (share - _share(random_init.right)):+.1f} from " if given else ""
        reason += "random initialisation"
    else:
        learned = learned and below_chance
        place = "of the given weights" if given else "at random initialisation"
        reason = f"two-view retrieval {_percent(encoder.right)}, {_percent(reference.right)} {place}"
    few = 0.5 ** len(encoder.right) >= LEVEL  # `mcnemar` would see no gain though all were right
    if few:
        reason += f" on {count(len(encoder.right), 'image', 'images')}"
    elif min(better, worse) >= LEVEL:
        reason += f": no difference that could be seen on {len(encoder.right):,} images"
    elif 0 < share - before <= limit:
        reason += ": another initialisation may give as much"
    loss = "loss of a queue that was still filling"
    if loss_over_chance is not None:
        loss = f"loss at {100 * loss_over_chance:.0f} % of chance level"
    rank, untrained = encoder.scores["rankme"], random_init.scores["rankme"]
    if rank < COLLAPSED <= untrained:
        return f"collapsed: features have an effective rank of {rank:.1f}; {loss}: try a lower --lr"
    if max(rank, untrained) < COLLAPSED and not few:
        ranks = f"features have an effective rank of {rank:.1f}, {untrained:.1f} at random initialisation"
        return f"images all but alike: {ranks}; {loss}: give images that differ"
    state, longer = "learning" if learned else "not learning", "train longer (--time-budget, --epochs)"
    way_out = None if learned else f"{longer}, or give more images"
    instead = "" if given else "start from weights (--weights), choose views (--choose-views), or "
    if given and worse < LEVEL:
        state, way_out = "hurt", f"keep the original, which is at {100 * before:.1f} %"
    if few:
        state, way_out = "too few images to tell", "give more"
        way_out += " images" if encoder.knn is None else " labelled images to test on"
    parts = [f"{state}: {reason}", loss]
    if encoder.knn is not None and not few:
        if unbeaten := _unbeaten(encoder.right, simple or {}, largest_class, channels):
            parts.append(unbeaten)
            if state != "hurt":
                way_out = f"{instead}{longer}"
        below_start = worse < LEVEL and before - share > limit
        fall = _fall(below_start, checks) if below_chance else None
        if fall and (lowest := _lowest_before_a_rise(checks)) is not None:
            parts.append(f"kNN fell to {100 * lowest:.1f} % at its lowest check, but rises")
            way_out = way_out or longer
        elif fall:
            what = "colour" if channels == 3 else "brightness"
            options = "--jitter-strength, --crop-min" if given else "--choose-views"  # refused where weights are given
            parts.append(f"{fall}: the views may be told apart by something simple, such as {what}")
            parts.append(f"try other views ({options})" + ("" if given else ", or start from weights (--weights)"))
            way_out = way_out if state == "hurt" else None
    return "; ".join(parts) + (f": {way_out}" if way_out else "")


def _unbeaten(right: Tensor, simple: Mapping[str, Metrics], largest_class: Tensor | None, channels: int) -> str | None:
    """That an encoder is no better than the best simple features or the largest class; None where it is."""
    rivals: dict[str, Tensor] = {}
    if simple:
        key = max(simple, key=lambda key: _share(simple[key].right))
        name = row_name(key, channels)
        rivals[f"a {name}" if name.endswith("histogram") else name] = simple[key].right
    if largest_class is not None:
        rivals["always naming the largest class"] = largest_class
    found = []
    for name, rival in rivals.items():
        if mcnemar(right, rival) >= LEVEL:
            how = "no" if _share(right) <= _share(rival) else "not clearly"
            found.append(f"{how} better than {name} ({100 * _share(rival):.1f} %)")
    return " and ".join(found) or None


def _fall(below_start: bool, checks: Sequence[Check]) -> str | None:
    """That kNN fell while the loss did; None if it did not."""
    fall = "the loss falls but kNN too"
    if checks:
        (top1, low, _), (_, _, last_high) = max(checks), checks[-1]
        if last_high < low:
            return f"{fall}, from {100 * top1:.1f} % at its best check"
    return fall if below_start else None


def _lowest_before_a_rise(checks: Sequence[Check]) -> float | None:
    """The lowest kNN since the best check, or of all if that is the last, where the last is clearly above it."""
    since = checks[checks.index(max(checks)) :] if checks else []
    lowest = min(since if len(since) > 1 else checks, default=None)
    return lowest[0] if lowest and checks[-1][1] > lowest[2] else None


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def _standard_error(right: Tensor, before: Tensor) -> float:
    """Of the difference of two accuracies on the same images."""
    difference = right.double() - before.double()
    return float(difference.std(correction=0)) / math.sqrt(len(difference))


def _percent(right: Tensor) -> str:
    """Share of images, with its interval."""
    low, high = wilson_interval(_share(right), len(right))
    return f"{100 * _share(right):.1f} % ({100 * low:.1f} to {100 * high:.1f})"
