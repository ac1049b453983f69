"""Long-tailed subsets: the profile of the literature, the same number at every imbalance, small inside large."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.data.long_tail import apportion, class_counts, long_tail, profile
from mocokit.errors import UserError

FULL = np.full(10, 5000)
many = st.lists(st.integers(0, 300), min_size=2, max_size=12).map(np.array)
ratios = st.sampled_from([0, 1, 1.5, 2, 7, 10, 49, 100])


def made_labels(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels of so many images of each class, and some of none, in a random order."""
    labels = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.full(5, -1)])
    return np.random.default_rng(seed).permutation(labels)


def test_cifar10_lt_of_the_literature():
    counts = class_counts(FULL, None, 100, seed=0)
    assert sorted(counts, reverse=True) == [int(5000 * 0.01 ** (i / 9)) for i in range(10)]
    assert counts.sum() == 12_406
    assert class_counts(FULL, 12_406, 100, seed=0).tolist() == counts.tolist()
    assert class_counts(FULL, None, 100, seed=1).tolist() != counts.tolist()


@settings(max_examples=40)
@given(classes=st.integers(2, 30), imbalance=st.floats(1, 200), images=st.integers(1, 5000))
def test_counts_are_floors_of_one_multiple_of_the_profile(classes, imbalance, images):
    shares = profile(classes, imbalance)
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(1 / imbalance)
    np.testing.assert_allclose(shares[:-1] / shares[1:], shares[0] / shares[1])
    counts = apportion(shares, images)
    assert counts.sum() == images
    # Jefferson: a common n_max is in [count / share, (count + 1) / share] of every class.
    assert (counts / shares).max() <= ((counts + 1) / shares).min() * (1 + 1e-9)


@settings(max_examples=40)
@given(available=many, imbalance=ratios, seed=st.integers(0, 3), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_subsets_fit_and_are_nested_or_the_refusal_says_what_fits(available, imbalance, seed, shares):
    labels = made_labels(available)
    sizes = sorted(max(1, round(share * available.sum())) for share in shares)
    chosen = []
    for size in sizes:
        try:
            chosen.append(long_tail(labels, size, imbalance, seed))
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            if found := re.search(r"give (\d+) at least|(\d+) fit$", str(error)):
                images = int(found[1] or found[2])
                try:  # what is said to fit is at most too small for the smallest class of all
                    assert len(long_tail(labels, images, imbalance, seed)) == images
                except UserError as again:
                    assert "some class has too few" in str(again)  # noqa: PT017
            elif found := re.search(r"at most ([\d.]+) fits", str(error)):
                assert len(long_tail(labels, None, float(found[1]), seed))
            else:
                assert "of two classes at least" in str(error)  # noqa: PT017
        else:
            rows = chosen[-1]
            assert len(rows) == len(set(rows.tolist())) == min(size, available.sum())
            assert (np.diff(rows) > 0).all()
            assert (labels[rows] >= 0).all()
            kept = np.bincount(labels[rows], minlength=len(available))[available > 0]
            assert (kept > 0).all()
            if imbalance == 1:
                assert np.ptp(kept) <= 1
    if len(chosen) == 2:
        assert set(chosen[0]) <= set(chosen[1])


@settings(max_examples=40)
@given(images=st.integers(500, 3000), imbalance=st.sampled_from([10, 100]), seed=st.integers(0, 5))
def test_the_balanced_twin_has_as_many_images_and_shares_them(images, imbalance, seed):
    labels = made_labels(np.full(10, 1500))
    tail, twin = (long_tail(labels, images, r, seed) for r in (imbalance, 1))
    assert len(tail) == len(twin) == images
    common = np.bincount(labels[np.intersect1d(tail, twin)], minlength=10)
    of_both = [np.bincount(labels[rows], minlength=10) for rows in (tail, twin)]
    assert common.tolist() == np.minimum(*of_both).tolist()


def test_classes_as_they_are_keep_their_shares():
    available = np.array([400, 0, 100, 1])
    assert class_counts(available, None, 0, seed=0).tolist() == [400, 0, 100, 1]
    assert class_counts(available, 251, 0, seed=0).tolist() == [200, 0, 50, 1]
    assert class_counts(available, 9999, 0, seed=0).sum() == 501


@pytest.mark.parametrize(
    ("available", "images", "imbalance", "message"),
    [
        ([0, 9], None, 2, "--imbalance 2: needs labels, of two classes"),
        ([9, 9], None, 0.5, "--imbalance 0.5: is largest class by smallest"),
        ([9, 9], 3, 9, "--limit 3: leaves the smallest class no image at --imbalance 9; give 10 at least"),
        ([9, 9], 20, 1, "--limit 20: some class has too few images for --imbalance 1; 18 fit"),
        ([3, 9, 9], 2, 0, "--limit 2: is fewer than the 3 classes; give 3"),
        ([9, 9], None, 10, "at most 9 fits"),
    ],
)
def test_refusals(available, images, imbalance, message):
    with pytest.raises(UserError, match=re.escape(message)):
        class_counts(np.array(available), images, imbalance, seed=0)


def test_k_labels_a_class_are_of_the_subset():
    labels = made_labels(np.full(4, 80))
    tail = long_tail(labels, 150, 8, seed=2)
    few = long_tail(labels, 4 * 9, 1, seed=2)
    assert np.bincount(labels[few]).tolist() == [9] * 4
    assert np.bincount(labels[tail]).min() >= 9
    assert set(few) <= set(tail)
