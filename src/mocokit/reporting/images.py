"""The images that a report is about: those of all splits, or a sample, as the rows that everything else refers to."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mocokit.data.image_index import SPLITS
from mocokit.data.sampler import random_subset
from mocokit.data.store import Store
from mocokit.evaluation.baselines import Features
from mocokit.evaluation.splits import LabelledSplits, Subset
from mocokit.files import printable

MOST, IN_A_RUN = 100_000, 2000  # images of a report at most; of the one that pretraining writes


@dataclass(frozen=True)
class ReportImages:
    """``parts`` one after the other are the N rows; ``total`` is how many images there are, looked at or not.

    ``held_out``: of which parts some images are kept for testing, though the data has no test images of its own.
    """

    parts: tuple[Subset, ...]
    label_names: tuple[str, ...] | None
    total: int
    held_out: Subset | None = None

    @classmethod
    def of(cls, store: Store, splits: LabelledSplits | None, seed: int, most: int = MOST) -> "ReportImages":
        """All images of ``store``, of more than ``most`` a random choice by ``seed``; ``splits`` says which test."""
        sets = [store.splits[split] for split in SPLITS if split in store.splits]
        total = sum(map(len, sets))
        chosen, parts, start = random_subset(total, most, seed), [], 0
        for images in sets:
            here = chosen[(chosen >= start) & (chosen < start + len(images))] - start
            parts.append(Subset(images, here))
            start += len(images)
        held_out = splits.test if splits and splits.held_out else None
        return cls(tuple(parts), store.label_names, total, held_out)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def channels(self) -> int:
        """Of every image."""
        return self.parts[0].images.channels

    @cached_property
    def names(self) -> list[str]:
        """Path of each image inside the data, as text that every format can hold."""
        return [printable(part.images.names[row]) for part in self.parts for row in part.indices.tolist()]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """[N] int64, indices of `label_names`, -1 of an image without a label; None without classes."""
        if self.label_names is None:
            return None
        return np.concatenate([_labels(part) for part in self.parts])

    @cached_property
    def splits(self) -> np.ndarray:
        """Name of the split of each image, [N] text; held-out images are "test"."""
        found = []
        for part in self.parts:
            names = np.full(len(part), part.images.split, dtype="U5")
            if self.held_out is not None and self.held_out.images is part.images:
                names[np.isin(part.indices.numpy(), self.held_out.indices.numpy())] = "test"
            found.append(names)
        return np.concatenate(found)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width of each image as it is stored, at most twice what the encoder sees: [N, 2] int32."""
        return np.concatenate([part.sizes for part in self.parts])

    def features(self, compute: Features, rows: Collection[int] | None = None) -> Tensor:
        """Features of all rows, [N, D] float32; of ``rows`` alone, ascending, if they are given, the others zeros."""
        if rows is None:
            return torch.cat([compute(part) for part in self.parts if len(part)])
        wanted, found, start = torch.tensor(list(rows)), [], 0
        for part in self.parts:
            here = wanted[(wanted >= start) & (wanted < start + len(part))] - start
            if len(here):
                found.append(compute(Subset(part.images, part.indices[here])))
            start += len(part)
        some = torch.cat(found)
        features = torch.zeros(len(self), some.shape[1])
        features[wanted] = some
        return features

    def pixels(self) -> Iterator[np.ndarray]:
        """Each image in order, uint8 [C, H, W] at the size that it is stored in."""
        for part in self.parts:
            for row in part.indices.tolist():
                yield part.images.image(row)

    def image(self, row: int) -> np.ndarray:
        """One image, uint8 [C, H, W]."""
        for part in self.parts:
            if row < len(part):
                return part.images.image(int(part.indices[row]))
            row -= len(part)
        raise IndexError(row)


def _labels(part: Subset) -> np.ndarray:
    labels = part.images.labels
    return np.full(len(part), -1) if labels is None else labels[part.indices.numpy()]
