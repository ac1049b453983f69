"""One measurement of an encoder on a data set: kNN where there are labels, label-free scores always."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mocokit.data.augment import Augmentation, augment, sample_params
from mocokit.data.sampler import generator, random_subset
from mocokit.data.store import ImageSet
from mocokit.evaluation.features import BATCH, extract, rows_of
from mocokit.evaluation.knn import Accuracy, KnnEvaluator
from mocokit.evaluation.scorecard import COLLAPSED, SCORES, Views
from mocokit.model.encoder import Encoder, evaluating

SCORE_IMAGES = 1000  # two-view scores use this many images at most: retrieval depends on the number


@dataclass(frozen=True)
class Metrics:
    """``knn`` is None without labels; ``scores`` are those of `mocokit.evaluation.scorecard.SCORES` by name."""

    knn: Accuracy | None
    scores: dict[str, float]

    def row(self) -> dict[str, float]:
        """Flat, as columns of metrics.csv."""
        knn = {} if self.knn is None else {"knn_top1": self.knn.top1, "knn_top5": self.knn.top5}
        return knn | self.scores


@dataclass(frozen=True)
class Evaluator:
    """A fixed measurement of encoders: the same images and the same views each time it is taken.

    ``images`` are the training split, of which at most ``scored`` are used for the scores; ``knn`` is None
    without labels.
    """

    images: ImageSet
    augmentations: tuple[Augmentation, Augmentation]
    seed: int
    knn: KnnEvaluator | None
    scored: int = SCORE_IMAGES

    def sample(self, votes: int, asks: int) -> "Evaluator":
        """The same evaluator with a kNN test on at most that many images."""
        return replace(self, knn=self.knn and self.knn.sample(votes, asks, self.seed))

    @property
    def images_read(self) -> int:
        """How many times an image goes through the encoder when the evaluator is taken."""
        return 3 * min(self.scored, len(self.images)) + (self.knn.images_read if self.knn else 0)

    def evaluate(self, encoder: Encoder) -> Metrics:
        """Measure ``encoder``; it is left as it was."""
        rows = random_subset(len(self.images), self.scored, self.seed)
        plain = extract(encoder, self.images, rows)
        views = Views(plain, self._view(encoder, rows, 0), self._view(encoder, rows, 1))
        scores = {score.name: score.measure(views) for score in SCORES}
        if self.knn is None:
            return Metrics(None, scores)
        return Metrics(self.knn.accuracy(lambda images, rows: extract(encoder, images, rows)), scores)

    @torch.inference_mode()
    def _view(self, encoder: Encoder, rows: Tensor, which: int) -> Tensor:
        """Features of one augmented view of the scored images."""
        spec, draw = encoder.spec, generator(self.seed, f"evaluator view {which + 1}")
        parts = []
        with evaluating(encoder):
            for batch in rows.split(BATCH):
                pixels, sizes = rows_of(self.images, batch, encoder.device)
                params = sample_params(self.augmentations[which], sizes, spec.channels, draw)
                view = augment(pixels, params, spec.image_size, spec.mean, spec.std)
                parts.append(encoder.backbone(view).float().cpu())
        return torch.cat(parts)


def verdict(
    loss_over_chance: float, encoder: Metrics, random_init: Metrics, asked: int = 0
) -> dict[str, Any]:
    """A plain judgement of a finished run: ``state`` is learning, not learning or collapsed; ``why`` a sentence.

    Of ``asked`` kNN queries, a gain within two standard errors (at most 1 / sqrt(asked)) is no gain.
    """
    rank, retrieved = encoder.scores["rankme"], encoder.scores["retrieval"]
    if rank < COLLAPSED:
        state, why = "collapsed", f"features have an effective rank of {rank:.1f}"
    elif encoder.knn is not None and random_init.knn is not None:
        gain = 100 * (encoder.knn.top1 - random_init.knn.top1)
        noise = 100 / math.sqrt(max(1, asked))
        state = "learning" if gain > noise else "not learning"
        why = f"kNN top-1 {100 * encoder.knn.top1:.1f} %, {gain:+.1f} points from random initialisation"
        if 0 < gain <= noise:
            why += f", within the noise of {asked} queries"
    else:
        before = random_init.scores["retrieval"]
        better = retrieved > before or before == 1
        state = "learning" if better and loss_over_chance < 1 else "not learning"
        why = f"two-view retrieval {100 * retrieved:.1f} %, {100 * before:.1f} % at random initialisation"
    return {"state": state, "why": f"{why}; loss at {100 * loss_over_chance:.0f} % of chance level"}
