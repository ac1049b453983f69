"""Which labelled images train, validate and test: splits never overlap, and few-shot choices are few."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.sampler import generator
from mocokit.errors import UserError
from mocokit.evaluation.splits import NotSplit, grouped_holdout, split_labelled, stratified_folds, stratified_holdout


class Images:
    """As much of an ImageSet as splitting looks at."""

    def __init__(self, labels):
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self):
        return len(self.labels)


def store(classes=3, **splits):
    images = {name: Images(labels) for name, labels in splits.items()}
    return SimpleNamespace(name="pets", splits=images, label_names=tuple("abcdefg"[:classes]))


def ids(*parts):
    """Which images parts hold: pairs of the set and the position in it."""
    return [(id(part.images), index) for part in parts for index in part.indices.tolist()]


def counts(part, classes=3):
    return part.labels.bincount(minlength=classes).tolist()


BALANCED = [0, 1, 2] * 20
many_labels = st.lists(st.integers(0, 6), min_size=1, max_size=80)


def test_own_splits_are_used():
    data = store(train=BALANCED, val=[0, 1, 2], test=[2, 1])
    found = split_labelled(data, 0)
    assert [counts(part) for part in (found.train, found.val, found.test)] == [[20] * 3, [1] * 3, [0, 1, 1]]
    assert found.test.images is data.splits["test"]
    assert len(found.train_val) == 60


@pytest.mark.parametrize("splits", [("train",), ("train", "val"), ("train", "test")])
def test_a_missing_split_is_a_fifth_of_each_class(splits):
    data = store(**dict.fromkeys(splits, BALANCED))
    found = split_labelled(data, 0)
    test, remaining = (4, 16) if splits == ("train",) else (20, 20)
    assert counts(found.test) == [test] * 3
    assert counts(found.val) == [remaining // 5] * 3
    assert counts(found.train) == [remaining - remaining // 5] * 3
    together = ids(found.train, found.val, found.test)
    assert len(set(together)) == len(together) == 60 * len(splits)  # no overlap, nothing left out
    assert sorted(ids(found.train_val)) == sorted(ids(found.train, found.val))


def test_parts_are_a_function_of_the_seed():
    data = store(train=BALANCED)
    first, again, other = (ids(split_labelled(data, seed).test) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(("share", "test"), [(0.25, 5), (0.5, 10), (0.9, 18), (0.01, 1)])
def test_as_much_as_is_asked_for_is_held_out(share, test):
    found = split_labelled(store(train=BALANCED), 0, share)
    assert counts(found.test) == [test] * 3
    assert len(found.train_val) == 60 - 3 * test


def test_what_is_held_out_for_testing_is_nowhere_else():
    found = split_labelled(store(train=BALANCED, val=[-1] * 3), 1)
    assert found.held_out
    assert not set(ids(found.test)) & set(ids(found.train, found.val))
    assert not split_labelled(store(train=BALANCED, test=[0, 1]), 0).held_out


def test_without_validation_images_of_two_in_a_class():
    found = split_labelled(store(train=[0, 1, 2], test=[0]), 0)
    assert (len(found.train), len(found.val)) == (3, 0)


def test_images_without_a_label_are_left_out():
    data = store(train=[-1, *BALANCED, -1], val=[-1], test=[2, -1, 1])
    found = split_labelled(data, 0)
    assert min(part.labels.min() for part in (found.train, found.val, found.test)) == 0
    assert (len(found.train_val), len(found.test)) == (60, 2)
    assert found.val.images is data.splits["train"]  # of the val split nothing is known
    assert found.test.indices.tolist() == [0, 2]


def test_a_test_split_without_labels_is_as_none():
    found = split_labelled(store(train=BALANCED, test=[-1, -1]), 0)
    assert (counts(found.test), found.test.images) == ([4] * 3, found.train.images)


@pytest.mark.parametrize(
    ("splits", "train", "test", "held_out"),
    [
        ({"train": BALANCED, "test": [0, 1]}, "train", "test", False),
        ({"train": BALANCED, "val": [0, 1], "test": [-1]}, "train", "val", False),
        ({"train": BALANCED, "test": [-1]}, "train", "train", True),
        ({"train": [-1, -1], "test": BALANCED}, "test", "test", True),
        ({"train": [-1, -1], "val": BALANCED, "test": [0, 1]}, "val", "test", False),
        ({"test": BALANCED}, "test", "test", True),
    ],
)
def test_who_learns_and_who_is_asked(splits, train, test, held_out):
    data = store(**splits)
    found = split_labelled(data, 0)
    assert (found.train.images, found.val.images) == (data.splits[train], data.splits[train])
    assert (found.test.images, found.held_out) == (data.splits[test], held_out)


@pytest.mark.parametrize(
    ("splits", "why"),
    [
        ({"train": [-1, -1]}, "there are no labels; put the images into one folder for each class"),
        ({"train": [0, 1, 2]}, "no class has two labelled images; give several of each class"),
        ({"train": [0, 1, 1], "test": [2, 2]}, r"no class in common \(a, b here, c there\); give the classes of both"),
    ],
)
def test_why_nothing_can_be_measured(splits, why):
    with pytest.raises(NotSplit, match=why):
        split_labelled(store(**splits), 0)


@given(labels=many_labels, seed=st.integers(0, 2**32))
def test_held_out_is_a_fifth_of_each_class(labels, seed):
    labels = torch.tensor(labels)
    out = stratified_holdout(labels, 0.2, generator(seed, "test"))
    for value in labels.unique():
        n, k = int((labels == value).sum()), int(out[labels == value].sum())
        assert (k == 0) if n == 1 else (k >= 1 and abs(k - n / 5) <= max(0.5, 1 - n / 5))


@given(labels=many_labels, seed=st.integers(0, 2**32), most=st.integers(2, 6))
def test_folds_are_stratified_and_leave_every_class_to_learn_from(labels, seed, most):
    labels = torch.tensor(labels)
    folds = stratified_folds(labels, most, generator(seed, "test"))
    sizes = labels.bincount()
    assert len(folds) == (min(most, int(sizes.max())) if sizes.max() > 1 else 0)
    if not folds:
        return
    times = torch.stack(folds).sum(dim=0)
    assert torch.equal(times, (sizes[labels] > 1).long())
    for fold in folds:
        assert fold.any()
        assert set(labels[~fold].tolist()) == set(labels.tolist())
        share = sizes / len(folds)
        assert bool(((labels[fold].bincount(minlength=len(sizes)) - share).abs() <= 1).all())


def test_held_out_images_are_random_in_their_class():
    labels = torch.zeros(10, dtype=torch.int64)
    often = sum(stratified_holdout(labels, 0.2, generator(seed, "test")).long() for seed in range(500))
    assert ((often - 100).abs() < 40).all()  # two of ten, 500 times: 100 each, standard deviation 9


@pytest.mark.parametrize("splits", [{"train": BALANCED}, {"train": BALANCED, "val": BALANCED, "test": BALANCED}])
def test_few_labels_per_class(splits):
    found = split_labelled(store(**splits), 0)
    few = [found.few_shot(4, None, 0, repeat) for repeat in (0, 1, 0)]
    assert [counts(part) for part in few] == [[4] * 3] * 3
    assert ids(few[0]) == ids(few[2]) != ids(few[1])
    assert not set(ids(*few)) & set(ids(found.test))
    assert len(found.few_shot(len(found.train_val) // 3, None, 0, 0)) == len(found.train_val)


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, [1, 4]), (0.01, [1, 1]), (1.0, [10, 40])])
def test_a_fraction_of_each_class(fraction, expected):
    found = split_labelled(store(classes=2, train=[0] * 10 + [1] * 40, test=[0, 1]), 0)
    assert counts(found.few_shot(None, fraction, 0, 0), 2) == expected


def test_more_labels_than_there_are_names_the_smallest_class():
    data = store(classes=4, train=[0] * 9 + [1] * 7 + [3] * 8, test=[0, 1])  # no image of the third class
    found = split_labelled(data, 0)
    with pytest.raises(UserError, match=r"--labels-per-class 8: class 'b' has 7 .* at most"):
        found.few_shot(8, None, 0, 0)
    assert counts(found.few_shot(7, None, 0, 0), 4) == [7, 7, 0, 7]


@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=120),
    groups=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_groups_are_held_out_whole_and_no_class_is(labels, groups, seed, share):
    labels = torch.tensor(labels)
    group_of = torch.randint(0, groups, (len(labels),), generator=generator(seed, "groups"))
    out = grouped_holdout(labels, group_of, share, generator(seed, "test"))
    assert not set(group_of[out].tolist()) & set(group_of[~out].tolist())
    assert set(labels[~out].tolist()) == set(labels.tolist())


def test_a_class_of_two_groups_is_not_whole_by_rounding():
    """5/12 and 7/12 are less than 1 together in float32; other classes want both groups held out."""
    labels, groups = [0] * 12, [0] * 5 + [1] * 7
    for k in range(20):
        labels += [1 + k] * 5 + [21 + k] * 5
        groups += [0] + [2] * 4 + [1] + [3] * 4
    labels, group_of = torch.tensor(labels), torch.tensor(groups)
    for seed in range(5):
        assert not grouped_holdout(labels, group_of, 0.2, generator(seed, "test"))[labels == 0].all()


def test_many_small_groups_are_near_the_share_of_each_class():
    draw = generator(0, "made")
    group_of = torch.randint(0, 300, (2000,), generator=draw)
    labels = (group_of % 3 + torch.randint(0, 2, (2000,), generator=draw)) % 4  # classes of groups differ
    out = grouped_holdout(labels, group_of, 0.2, generator(0, "test"))
    shares = labels[out].bincount(minlength=4) / labels.bincount()
    assert ((shares - 0.2).abs() < 0.01).all(), shares
    other = grouped_holdout(labels, group_of, 0.2, generator(1, "test"))
    assert not torch.equal(out, other)


def test_groups_that_are_too_large_for_the_share():
    labels = torch.tensor([0, 1] * 30)
    halves = torch.arange(60) // 30
    out = grouped_holdout(labels, halves, 0.2, generator(0, "test"))
    assert out.sum() == 30


def test_groups_stay_together_in_all_parts():
    data = store(train=BALANCED)
    data.splits["train"].groups = np.arange(60) // 6
    found = split_labelled(data, 0)
    of_part = [set(part.groups.tolist()) for part in (found.train, found.val, found.test)]
    assert sorted(group for groups in of_part for group in groups) == list(range(10))
    assert (len(found.test), counts(found.test)) == (12, [4, 4, 4])
    data.splits["train"].groups = data.splits["train"].labels
    with pytest.raises(NotSplit, match="every group has all images of a class; leave --split-by out"):
        split_labelled(data, 0)
