"""The evaluation of an encoder on a data set: label-free scores always, kNN accuracy where there are labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mocokit.data.augment import augment
from mocokit.data.sampler import generator, random_subset
from mocokit.data.store import ImageSet
from mocokit.data.view_params import Augmentation, sample_params
from mocokit.evaluation.features import BATCH, extract, rows_of
from mocokit.evaluation.knn import Accuracy, KnnEvaluator
from mocokit.evaluation.metrics import wilson_interval
from mocokit.evaluation.scorecard import SCORES, retrieved
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import encode

SCORE_IMAGES = 1000  # fixed, because two-view retrieval depends on the number of images


@dataclass(frozen=True)
class Metrics:
    """``knn`` is None without labels; ``scores`` are those of `mocokit.evaluation.scorecard.SCORES` by name.

    ``right`` [M] bool says of which images kNN was right, or, without labels, which of the ``images`` that were scored
    were retrieved: of two encoders on the same images it says more than the two accuracies.
    """

    knn: Accuracy | None
    scores: dict[str, float]
    images: int
    right: Tensor = field(compare=False, repr=False)

    @property
    def retrieval_ci95(self) -> list[float]:
        """95 % interval of two-view retrieval."""
        return list(wilson_interval(self.scores["retrieval"], self.images))

    def row(self) -> dict[str, float]:
        """Flat, as columns of metrics.csv."""
        if self.knn is None:
            return self.scores
        knn = self.knn.figures()
        low, high = knn["ci95"]
        return {"knn_top1": knn["top1"], "knn_low": low, "knn_high": high, "knn_top5": knn["top5"]} | self.scores


@dataclass(frozen=True)
class Evaluator:
    """Evaluates every encoder on the same images and the same augmented views.

    At most ``score_images`` of ``images``, the training split, are used for scores; ``knn`` is None without labels.
    """

    images: ImageSet
    augmentations: tuple[Augmentation, Augmentation]
    seed: int
    knn: KnnEvaluator | None
    score_images: int = SCORE_IMAGES

    def sample(self, bank: int, queries: int) -> "Evaluator":
        """The same evaluator with at most that many images in the bank and the queries of kNN."""
        return replace(self, knn=self.knn and self.knn.sample(bank, queries, self.seed))

    @property
    def images_read(self) -> int:
        """How many images one evaluation encodes."""
        return 3 * min(self.score_images, len(self.images)) + (self.knn.images_read if self.knn else 0)

    def evaluate(self, encoder: Encoder) -> Metrics:
        """Evaluate ``encoder``; it is left as it was."""
        indices = random_subset(len(self.images), self.score_images, self.seed)
        plain = extract(encoder, self.images, indices)
        first, second = (self._augmented(encoder, indices, view) for view in (0, 1))
        scores = {score.name: score.measure(plain, first, second) for score in SCORES}
        if self.knn is None:
            return Metrics(None, scores, len(indices), retrieved(first, second))
        ranks = self.knn.ranks(lambda part: extract(encoder, part.images, part.indices))
        return Metrics(Accuracy.of(ranks), scores, len(indices), ranks == 0)

    def _augmented(self, encoder: Encoder, indices: Tensor, view: int) -> Tensor:
        """Features [N, D] of one augmented view of the images at ``indices``."""
        spec, draw = encoder.spec, generator(self.seed, f"exam view {view + 1}")

        def views() -> Iterator[tuple[Tensor]]:
            for rows in indices.split(BATCH):
                images, sizes = rows_of(self.images, rows, encoder.device)
                params = sample_params(self.augmentations[view], sizes, spec.channels, draw)
                yield (augment(images, params, spec.image_size, spec.mean, spec.std),)

        return torch.cat(list(encode(encoder, views(), images=len(indices))))
