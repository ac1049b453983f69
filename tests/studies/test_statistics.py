"""Statistics of a study, against numbers made by hand and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.studies.statistics import (
    Interval,
    labels_needed,
    paired_difference,
    relative_gap,
    saved,
    seeds_needed,
    setting,
    t_interval,
    unlearned,
    verdict,
)

T2, T4 = 4.302652729911275, 2.7764451051977987  # 97.5 % quantiles of Student's t with 2 and 4 degrees of freedom


def test_an_interval_by_hand():
    interval = t_interval([0.1, 0.2, 0.3])
    assert (interval.mean, interval.n) == (pytest.approx(0.2), 3)
    assert interval.half_width == pytest.approx(T2 * 0.1 / math.sqrt(3))
    only = t_interval([0.4])
    assert (only.mean, only.n, math.isnan(only.half_width), only.sees_difference) == (0.4, 1, True, False)


def test_differences_are_paired_by_seed():
    moco, scratch = {0: 0.50, 1: 0.70, 2: 0.93, 7: 0.1}, {2: 0.80, 1: 0.60, 0: 0.40, 9: 0.9}
    difference = paired_difference(moco, scratch)
    assert (difference.mean, difference.n) == (pytest.approx(0.11), 3)
    assert difference.half_width == pytest.approx(T2 * np.std([0.1, 0.1, 0.13], ddof=1) / math.sqrt(3))
    assert difference.sees_difference
    better, worse = t_interval([0.5, 0.7, 0.93]), t_interval([0.4, 0.6, 0.8])
    assert better.mean - worse.mean < better.half_width + worse.half_width  # unpaired it is not seen
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_the_relative_gap_by_hand():
    gap = relative_gap({0: 0.8, 1: 0.5, 2: 0.0}, {0: 0.6, 1: 0.45, 2: 0.1})
    assert (gap.mean, gap.n) == (pytest.approx((0.25 + 0.1) / 2), 2)
    assert relative_gap({}, {0: 0.5}) is None


@pytest.mark.parametrize(
    ("wanted", "needed"),
    [
        (0.2, 10),
        (0.3, 10),
        (0.4, math.sqrt(1000)),
        (0.5, 100),
        (0.6, 1000**0.5 * 100**0.5),
        (0.7, 1000),
        (0.71, math.inf),
    ],
)
def test_labels_needed_by_hand(wanted, needed):
    assert labels_needed([10, 100, 1000], [0.3, 0.5, 0.7], wanted) == pytest.approx(needed)


def test_labels_needed_of_a_curve_that_falls_in_between():
    assert labels_needed([1, 10, 100], [0.3, 0.2, 0.4], 0.3) == 1
    assert labels_needed([1, 10, 100], [0.3, 0.2, 0.4], 0.4) == pytest.approx(100)


def test_seeds_needed_are_the_fewest_whose_interval_leaves_out_zero():
    difference = t_interval([0.01, 0.05, -0.02])
    needed = seeds_needed(difference)
    deviation = np.std([0.01, 0.05, -0.02], ddof=1)
    from scipy.stats import t

    halves = {n: t.ppf(0.975, n - 1) * deviation / math.sqrt(n) for n in (needed - 1, needed)}
    assert halves[needed] < difference.mean <= halves[needed - 1]
    assert seeds_needed(t_interval([0.5, -0.5])) is None
    assert seeds_needed(t_interval([0.5])) is None


def test_sentences():
    gain = Interval(0.081, 0.019, 5)
    assert setting(2000, 100, "10") == "with 2,000 images, r = 100 and 10 labels a class"
    assert setting(2000, 0, "all") == "with 2,000 images, classes as they are and all labels"
    assert setting(500, 1, "1") == "with 500 images, balanced classes and 1 label a class"
    scratch = "training from scratch"
    assert verdict(gain, "MoCo", scratch) == "MoCo gains 8.1 ± 1.9 points over training from scratch (n = 5)"
    loss = Interval(-0.03, 0.012, 5)
    assert verdict(loss, "MoCo", scratch) == "MoCo loses 3.0 ± 1.2 points against training from scratch (n = 5)"
    none = verdict(Interval(0.003, 0.012, 3), "MoCo", scratch)
    assert none.startswith("no difference that this study could see between MoCo and training from scratch (+0.3 ± 1.2")
    assert none.endswith("seeds would be needed to see one of this size")
    assert "more than 1,000 seeds" in verdict(Interval(0.0, 0.012, 3), "MoCo", scratch)
    assert "only seed" in verdict(t_interval([0.2]), "MoCo", scratch)
    assert verdict(t_interval([0.0, 0.0, 0.0]), "A", "B") == "no difference between A and B with any of 3 seeds"
    same = (
        "MoCo is the same -8.3 points from training from scratch with each of 2 seeds, too few to say how sure that is"
    )
    assert verdict(paired_difference({0: 25 / 48, 1: 29 / 48}, {0: 29 / 48, 1: 33 / 48}), "MoCo", scratch) == same
    assert saved("10", math.inf, 10).endswith("training from scratch needs more than all")
    assert saved("10", 1234.4, 10).endswith("needs about 1,234")
    assert saved("100", 10.0, 10).endswith("needs no more than 10")


@pytest.mark.parametrize(
    ("gain", "above", "said"),
    [
        ([0.5, 0.51], [-0.01, 0.02], "probe of random initialisation (+0.5 ± 19.1 points, n = 2): the gain need not"),
        ([0.5, 0.51], [-0.02, -0.02], "initialisation (-2.0 points, n = 2)"),
        ([0.5, 0.51], [0.02, 0.02], "initialisation (+2.0 points, n = 2)"),  # equal by luck, maybe
        ([0.5, 0.5], [-0.01, 0.02], "initialisation (+0.5 ± 19.1 points, n = 2)"),
        ([0.5], [-0.002], "initialisation (-0.2 points, n = 1)"),
        ([0.5], [0.002], None),  # of one seed nothing is known
        ([0.5, 0.51], [0.2, 0.21], None),
        ([0.5, 0.51], None, None),
        ([-0.5, -0.51], [-0.2, -0.21], None),  # no gain
        ([0.5, -0.4], [-0.2, -0.21], None),
    ],
)
def test_a_gain_that_random_weights_give_too(gain, above, said):
    text = unlearned(t_interval(gain), above and t_interval(above))
    assert text.startswith(", but is not clearly above a linear probe of random") if said else text == ""
    assert (said or "") in text


@given(st.integers(1, 1000), st.lists(st.integers(0, 1000), min_size=2, max_size=6), st.integers(-1000, 1000))
def test_equal_differences_are_never_seen(images, counts, gain):
    """However their fractions are rounded; those that differ by an image have an interval."""
    before = {seed: count / images for seed, count in enumerate(counts)}
    after = {seed: (count + gain) / images for seed, count in enumerate(counts)}
    same = paired_difference(after, before)
    assert math.isnan(same.half_width)
    assert not same.sees_difference
    assert "±" not in verdict(same, "A", "B")
    after[0] = (counts[0] + gain + 1) / images
    assert paired_difference(after, before).half_width > 0


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_their_95_percent(seeds):
    """Of differences between methods whose seeds share much; 2,000 studies with a difference, 2,000 without."""
    draw = np.random.default_rng(seeds)
    for truth in (0.0, 0.08):
        shared = draw.normal(0.5, 0.05, (2000, seeds))
        before, of = shared + draw.normal(0, 0.01, shared.shape), shared + draw.normal(truth, 0.01, shared.shape)
        studies = [paired_difference(dict(enumerate(a)), dict(enumerate(b))) for a, b in zip(of, before, strict=True)]
        covered = np.mean([abs(each.mean - truth) <= each.half_width for each in studies])
        assert 0.93 < covered < 0.97
        seen = np.mean([each.sees_difference for each in studies])
        assert seen < 0.07 if truth == 0 else seen > 0.9
