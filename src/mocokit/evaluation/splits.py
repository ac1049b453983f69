"""Which labelled images train, validate and test: the same for the linear probe and for fine-tuning.

Whatever is chosen by accuracy, a strength or an epoch, is chosen on the validation part and never on the test part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mocokit.data.sampler import generator
from mocokit.data.store import ImageSet, Store
from mocokit.errors import UserError
from mocokit.evaluation.knn import labels_of

HELD_OUT = 0.2  # of each class, where the data has no split of its own


@dataclass(frozen=True)
class Subset:
    """Some labelled images: those at ``indices`` [N] int64, ascending, of ``images``."""

    images: ImageSet
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """[N] int64."""
        return labels_of(self.images, self.indices)

    def where(self, chosen: Tensor) -> "Subset":
        """The images where ``chosen`` [N] is true."""
        return Subset(self.images, self.indices[chosen])


@dataclass(frozen=True)
class LabelledSplits:
    """Three parts without common images, and the names of the classes; ``val`` is empty if no class has two images."""

    train: Subset
    val: Subset
    test: Subset
    names: tuple[str, ...]

    @property
    def pool(self) -> Subset:
        """Every image of the training split that is not in the test part."""
        if self.val.images is not self.train.images:
            return self.train
        return Subset(self.train.images, torch.cat([self.train.indices, self.val.indices]).sort().values)

    def few(self, per_class: int | None, fraction: float | None, seed: int, repeat: int) -> Subset:
        """The random choice number ``repeat`` from the `pool`: ``per_class`` images, or a ``fraction``, of each class.

        A fraction is rounded in each class, to one image at least. Nothing else may be learned from or chosen by:
        labels that few are meant to be all there are.

        Raises:
            UserError: a class has fewer images than ``per_class``.
        """
        labels = self.pool.labels
        counts = labels.bincount(minlength=len(self.names))
        if fraction is not None:
            wanted = (fraction * counts).round().clamp(min=1)
        else:
            assert per_class is not None
            smallest = int(counts.masked_fill(counts == 0, len(labels) + 1).argmin())
            if per_class > counts[smallest]:
                raise UserError(
                    f"--labels-per-class {per_class}: class {self.names[smallest]!r} has {counts[smallest]} labelled "
                    f"training images; ask for {counts[smallest]} at most"
                )
            wanted = torch.full_like(counts, per_class)
        return self.pool.where(_rank_in_class(labels, generator(seed, "few labels", repeat)) < wanted[labels])


def split_labelled(store: Store, seed: int) -> LabelledSplits:
    """Divide labelled images.

    The test part is the store's test split, else its validation split, else a fifth of each training class. The
    validation part is the store's validation split if that is not the test part, else a fifth of what remains of
    each training class.

    Args:
        store: with labels.
        seed: of the fifths.

    Raises:
        UserError: there is nothing to test on.
    """
    assert store.label_names is not None
    own = {name: Subset(images, torch.arange(len(images))) for name, images in store.splits.items()}
    train, val, test = own["train"], own.get("val"), own.get("test")
    if test is None:
        test, val = val, None
    if test is None:
        test, train = _divide(train, generator(seed, "test part"))
    if val is None:
        val, train = _divide(train, generator(seed, "validation part"))
    if not len(test):
        raise UserError(
            f"{store.name}: no class has two images, so that there is none to test on; add a test folder, or images"
        )
    return LabelledSplits(train, val, test, store.label_names)


def held_out(labels: Tensor, draw: torch.Generator) -> Tensor:
    """A random fifth of each class, rounded, at least one image of every class that has two: [N] bool."""
    counts = labels.bincount()
    wanted = (HELD_OUT * counts).round().clamp(min=1) * (counts > 1)
    return _rank_in_class(labels, draw) < wanted[labels]


def stratified_folds(labels: Tensor, most: int, draw: torch.Generator) -> list[Tensor]:
    """Random disjoint validation folds, [N] bool each, every class spread evenly over them.

    Every fold leaves images of each class to learn from. There are as many folds as the largest class has images,
    at most ``most``, and none if no class has two. The single image of a class is in no fold.
    """
    counts = labels.bincount()
    folds = min(most, int(counts.max()))
    fold = (_rank_in_class(labels, draw) + labels) % folds  # classes start at different folds
    return [(fold == f) & (counts[labels] > 1) for f in range(folds)] if folds > 1 else []


def _divide(part: Subset, draw: torch.Generator) -> tuple[Subset, Subset]:
    """A fifth of each class, and the rest."""
    out = held_out(part.labels, draw)
    return part.where(out), part.where(~out)


def _rank_in_class(labels: Tensor, draw: torch.Generator) -> Tensor:
    """The place, from 0, of each image in a random order of its class: [N] int64."""
    shuffled = torch.randperm(len(labels), generator=draw)
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = (counts.cumsum(0) - counts)[labels[grouped]]
    rank = torch.empty_like(labels)
    rank[grouped] = torch.arange(len(labels)) - starts
    return rank
