"""The evaluation of an encoder on a data set: label-free scores always, kNN accuracy where there are labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from mocokit.data.augment import augment
from mocokit.data.sampler import generator, random_subset
from mocokit.data.store import ImageSet
from mocokit.data.view_params import Augmentation, sample_params
from mocokit.evaluation.baselines import Features, features_of, simple_features
from mocokit.evaluation.features import BATCH, SIMPLE, Simple, gathered, rows_of
from mocokit.evaluation.knn import Accuracy, KnnEvaluator
from mocokit.evaluation.metrics import wilson_interval
from mocokit.evaluation.scorecard import SCORES, retrieved
from mocokit.evaluation.splits import Subset
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
        row = {"knn_top1": knn["top1"], "knn_low": low, "knn_high": high, "knn_top5": knn["top5"]} | self.scores
        return {name: value for name, value in row.items() if value is not None}


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
        spec = encoder.spec

        def of_views(view: int) -> Tensor:
            views = self._views(view, spec.image_size, spec.mean, spec.std, encoder.device)
            return gathered(encode(encoder, ((x,) for x in views), images=len(self._scored)), len(self._scored))

        return self._metrics(features_of(encoder), of_views)

    def evaluate_simple(self, image_size: int) -> dict[str, Metrics]:
        """Evaluate the features of `SIMPLE`, beside an encoder of images of that size."""
        plain, cpu = ([0.0] * self.images.channels, [1.0] * self.images.channels), torch.device("cpu")

        def of_views(simple: Simple) -> Callable[[int], Tensor]:
            size = min(image_size, simple.most)
            views = partial(self._views, size=size, mean=plain[0], std=plain[1], device=cpu)
            return lambda view: gathered(map(simple.compute, views(view)), len(self._scored))

        features = simple_features(image_size)
        return {key: self._metrics(features[key], of_views(simple)) for key, simple in SIMPLE.items()}

    def _metrics(self, features: Features, of_views: Callable[[int], Tensor]) -> Metrics:
        """Those of ``features`` of images and of one and the other augmented view of the images that are scored."""
        indices = self._scored
        plain, first, second = features(Subset(self.images, indices)), of_views(0), of_views(1)
        scores = {score.name: score.measure(plain, first, second) for score in SCORES}
        if self.knn is None:
            return Metrics(None, scores, len(indices), retrieved(first, second))
        ranks = self.knn.ranks(features)
        return Metrics(Accuracy.of(ranks, self.knn.classes), scores, len(indices), ranks == 0)

    @property
    def _scored(self) -> Tensor:
        """Indices of the images that are scored."""
        return random_subset(len(self.images), self.score_images, self.seed)

    def _views(
        self, view: int, size: int, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> Iterator[Tensor]:
        """Batches of one augmented view of the images that are scored; see `augment`."""
        draw = generator(self.seed, f"exam view {view + 1}")
        for rows in self._scored.split(BATCH):
            images, sizes = rows_of(self.images, rows, device)
            params = sample_params(self.augmentations[view], sizes, self.images.channels, draw)
            yield augment(images, params, size, mean, std)
