"""Which labelled images train, validate (choose a penalty or an epoch) and test: one rule for all that is measured."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mocokit.data.image_index import SPLITS
from mocokit.data.notes import listed
from mocokit.data.sampler import generator, random_subset
from mocokit.data.store import ImageSet, Store
from mocokit.errors import UserError

SHARE = 0.2  # of each class that is held out, where the data has no split of its own


@dataclass(frozen=True)
class Subset:
    """Some labelled images: those at ``indices`` [N] int64, ascending, of ``images``."""

    images: ImageSet
    indices: Tensor

    @classmethod
    def labelled(cls, images: ImageSet) -> "Subset":
        """Those of ``images`` that have a label."""
        if images.labels is None:
            return cls(images, torch.empty(0, dtype=torch.int64))
        return cls(images, torch.from_numpy(images.labels >= 0).nonzero().squeeze(1))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """[N] int64."""
        assert self.images.labels is not None
        return torch.from_numpy(self.images.labels)[self.indices]

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each, [N, 2]."""
        return self.images.sizes[self.indices.numpy()]

    @property
    def groups(self) -> Tensor | None:
        """[N] int64, equal for images that stay together; None if each stands for itself."""
        groups = getattr(self.images, "groups", None)
        return None if groups is None else torch.from_numpy(groups)[self.indices]

    def where(self, mask: Tensor) -> "Subset":
        """The images where ``mask`` [N] is true."""
        return Subset(self.images, self.indices[mask])

    def sample(self, most: int, seed: int) -> "Subset":
        """A seeded random choice of at most ``most`` images."""
        return Subset(self.images, self.indices[random_subset(len(self), most, seed)])


@dataclass(frozen=True)
class LabelledSplits:
    """Subsets without common images, and the class names; ``val`` is empty if no class has two images.

    ``held_out``: whether the data has no test images of its own, so that some of its training images test.
    """

    train: Subset
    val: Subset
    test: Subset
    names: tuple[str, ...]
    held_out: bool = False

    @property
    def trained(self) -> int:
        """How many classes have images to learn from; the others can only test."""
        return len(self.train_val.labels.unique())

    @property
    def train_val(self) -> Subset:
        """All images of the data's training split that are not in ``test``."""
        if self.val.images is not self.train.images:
            return self.train
        return Subset(self.train.images, torch.cat([self.train.indices, self.val.indices]).sort().values)

    def few_shot(self, per_class: int | None, fraction: float | None, seed: int, repeat: int) -> Subset:
        """Random choice number ``repeat`` from `train_val`: ``per_class`` images, or a ``fraction``, of each class.

        A fraction is rounded in each class, to at least one image; a `UserError` if a class has fewer images than
        ``per_class``. Validate within these images only: in a few-shot setting there are no other labels.
        """
        labels = self.train_val.labels
        counts = labels.bincount(minlength=len(self.names))
        if fraction is not None:
            wanted = (fraction * counts).round().clamp(min=1)
        else:
            assert per_class is not None
            wanted = torch.full_like(counts, per_class)
            smallest = int(counts.masked_fill(counts == 0, len(labels) + 1).argmin())
            name, most = self.names[smallest], int(counts[smallest])
            if per_class > most:
                has = f"class {name!r} has {most} labelled training images"
                raise UserError(f"--labels-per-class {per_class}: {has}; give {most} at most")
        rank = _random_rank_in_class(labels, generator(seed, "few labels", repeat))
        return self.train_val.where(rank < wanted[labels])


def labelled_splits(store: Store) -> dict[str, Subset]:
    """The labelled images of each split that has any, in the order train, val, test."""
    if store.label_names is None:
        return {}
    found = {split: Subset.labelled(store.splits[split]) for split in SPLITS if split in store.splits}
    return {split: part for split, part in found.items() if len(part)}


class NotSplit(UserError):
    """Labels, or images of a class, are lacking to train on some and test on others: why, and the way out."""


def split_labelled(store: Store, seed: int, test_share: float = SHARE) -> LabelledSplits:
    """Divide labelled images into training, validation and test images; `NotSplit` where that can't be done.

    Test images are the data's test split, else its validation split, else ``test_share`` of each class of the only
    split that has labels, in whole groups where images have some. Validation images are the data's validation split if
    that is not used for testing, else a fifth of what remains of each training class, likewise. Both are drawn by
    ``seed``.
    """
    given = labelled_splits(store)
    if not given or store.label_names is None:
        way_out = (
            "put the images into one folder for each class, give shards a column label, or name a file by --labels"
        )
        raise NotSplit(f"there are no labels; {way_out}")
    first = next(iter(given))
    others = [split for split in ("test", "val") if split in given and split != first]
    train, held_out = given[first], not others
    if held_out:
        test, train = _hold_out(train, test_share, generator(seed, "test part"))
        if not len(test):
            if train.groups is not None:
                way_out = "leave --split-by out, or group by something smaller; tiles of one image are a group"
                raise NotSplit(f"every group has all images of a class; {way_out}")
            raise NotSplit("no class has two labelled images; give several of each class")
    else:
        test = given[others[0]]
        ours, theirs = ({store.label_names[value] for value in part.labels.unique()} for part in (train, test))
        if not ours & theirs:
            names = f"{listed(sorted(ours))} here, {listed(sorted(theirs))} there"
            way_out = "give the classes of both the same names"
            raise NotSplit(f"training and test images have no class in common ({names}); {way_out}")
    if "val" in others[1:]:
        val = given["val"]
    else:
        val, train = _hold_out(train, SHARE, generator(seed, "validation part"))
    return LabelledSplits(train, val, test, store.label_names, held_out)


def stratified_holdout(labels: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """A random share of each class, rounded, at least one image of every class that has two, but not all: [N] bool."""
    counts = labels.bincount()
    wanted = torch.minimum((share * counts).round().clamp(min=1), (counts - 1).clamp(min=0))
    return _random_rank_in_class(labels, draw) < wanted[labels]


def grouped_holdout(labels: Tensor, groups: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """Whole random groups that have together about a share of each class, and no class whole: [N] bool.

    Groups are looked at in a random order, and taken if the shares of all classes come nearer by that; if that is none,
    the one that comes nearest.
    """
    _, groups = groups.unique(return_inverse=True)
    classes = int(labels.max()) + 1
    totals = labels.bincount(minlength=classes).double()  # in float32 shares of a class need not add up to 1
    pairs, counts = (groups * classes + labels).unique(return_counts=True)  # a group and a class of its, in order
    starts = torch.searchsorted(pairs, torch.arange(int(groups.max()) + 2) * classes)
    wanted = torch.where(totals > 0, share, 0.0).double()
    held = torch.zeros_like(wanted)
    chosen = torch.zeros(len(starts) - 1, dtype=torch.bool)
    best, distance_of_best = -1, float("inf")
    for group in torch.randperm(len(chosen), generator=draw).tolist():
        own = slice(starts[group], starts[group + 1])
        of = pairs[own] % classes
        together = held.index_add(0, of, counts[own] / totals[of])
        if bool((together > 1 - 1e-9).any()):
            continue
        distance = float((together - wanted).square().sum())
        if distance < float((held - wanted).square().sum()):
            held, chosen[group] = together, True
        elif distance < distance_of_best:
            best, distance_of_best = group, distance
    if not chosen.any() and best >= 0:
        chosen[best] = True
    return chosen[groups]


def stratified_folds(labels: Tensor, most: int, draw: torch.Generator) -> list[Tensor]:
    """Random disjoint validation folds, [N] bool each, every class spread evenly over them and also outside of each.

    There are as many as the largest class has images, at most ``most``, and none if no class has two. The only image of
    a class is in no fold.
    """
    counts = labels.bincount()
    folds = min(most, int(counts.max()))
    fold = (_random_rank_in_class(labels, draw) + labels) % folds  # classes start at different folds
    return [(fold == f) & (counts[labels] > 1) for f in range(folds)] if folds > 1 else []


def _hold_out(subset: Subset, share: float, draw: torch.Generator) -> tuple[Subset, Subset]:
    """A share of each class, in whole groups if there are any, and the rest."""
    if subset.groups is None:
        mask = stratified_holdout(subset.labels, share, draw)
    else:
        mask = grouped_holdout(subset.labels, subset.groups, share, draw)
    return subset.where(mask), subset.where(~mask)


def _random_rank_in_class(labels: Tensor, draw: torch.Generator) -> Tensor:
    """The place, from 0, of each image in a random order of its class: [N] int64."""
    shuffled = torch.randperm(len(labels), generator=draw)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    rank = torch.empty_like(labels)
    rank[by_class] = torch.cat([torch.arange(count) for count in labels.bincount().tolist()])
    return rank
