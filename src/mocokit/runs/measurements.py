"""What is measured on a run's images: encoders, during training and at its end, and how long it all takes here."""

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import mocokit
from mocokit import distributed
from mocokit.auto.trials import Pace
from mocokit.auto.view_sizes import view_sizes
from mocokit.config import PretrainConfig
from mocokit.data.store import ImageSet, Store
from mocokit.data.streaming import StreamingImages
from mocokit.data.view_params import augmentations
from mocokit.deploy.encoder_file import read_encoder
from mocokit.errors import UserError
from mocokit.evaluation.baselines import random_encoder
from mocokit.evaluation.evaluator import SCORE_IMAGES, Evaluator
from mocokit.evaluation.knn import KnnEvaluator
from mocokit.evaluation.lidar import lidar, trial_views
from mocokit.evaluation.near_duplicates import MOST_TEST, MOST_TRAIN, thumbnails
from mocokit.evaluation.verdict import Check
from mocokit.model.arithmetic import keep, measure_pace, recall
from mocokit.model.backbones import check_view_sizes
from mocokit.model.encoder import Encoder, EncoderSpec, NonFiniteFeatures, encoder_spec
from mocokit.reporting.images import IN_A_RUN
from mocokit.reporting.projection import is_installed
from mocokit.rundir import RunDirectory
from mocokit.runs.held_out import parts_if_labelled
from mocokit.training.compilation import forget_cuda_graphs
from mocokit.training.log import read_rows
from mocokit.training.loop import NonFiniteLoss
from mocokit.training.pretraining import Measure
from mocokit.training.short_run import train_briefly
from mocokit.training.timing import step_times

CHECK_BANK, CHECK_QUERIES = 4000, 1000  # images of the checks during training
REPORT_SECONDS, MAP_SECONDS = 10.0, 0.005  # of a report whatever it is of, and of its map an image
PROJECTED = 1000  # images for TensorBoard's embedding projector
TIMED_IMAGES = 256  # of the bank, of the queries and of the scores in an evaluation that is timed on a CPU


def full_evaluator(store: Store, config: PretrainConfig) -> Evaluator:
    """All images."""
    parts = parts_if_labelled(store, config)
    knn = KnnEvaluator.of(parts, config.knn_k, config.knn_temperature) if parts else None
    return Evaluator(store.splits["train"], augmentations(config), config.seed, knn)


def check_evaluator(store: Store, config: PretrainConfig) -> Evaluator:
    """What is measured during training: some images."""
    return full_evaluator(store, config).sample(CHECK_BANK, CHECK_QUERIES)


def final_evaluator(store: Store, config: PretrainConfig) -> Evaluator:
    """What is measured at the end: all images, unless the configuration says less."""
    evaluator, most = full_evaluator(store, config), config.knn_images
    if not most:
        return evaluator
    return replace(evaluator.sample(most, most), score_images=min(SCORE_IMAGES, 2 * most))


def quality_check(store: Store, config: PretrainConfig, run: RunDirectory) -> Measure:
    """The check during training, on some images; at step 0 of the baseline's own encoder, or of the given weights."""
    evaluator = check_evaluator(store, config)

    def check(encoder: Encoder, step: int) -> dict[str, float]:
        if step == 0 and config.weights:
            encoder = read_encoder(run.initial).to(config.device)
        elif step == 0:
            encoder = random_encoder(encoder.spec, config.seed, store.splits["train"], config.device)
        return evaluator.evaluate(encoder).row()

    return check


def projected(config: PretrainConfig) -> int:
    """Images for TensorBoard's embedding projector, at most."""
    return min(PROJECTED, config.knn_images or PROJECTED) if config.histograms and config.evaluate else 0


def knn_checks(metrics: Path) -> list[Check]:
    """The checks during training, as rows of a metrics file have them."""
    rows = ([row.get(name) for name in ("knn_top1", "knn_low", "knn_high")] for row in read_rows(metrics))
    return [(float(top1), float(low), float(high)) for top1, low, high in rows if top1 and low and high]


@dataclass(frozen=True)
class RunMeasurements:
    """`mocokit.auto.trials.Measurements` of a run on ``images``.

    ``store`` has those to evaluate on; ``start`` is the spec of the encoder that the run goes on from, if there is one.
    """

    store: Store
    images: ImageSet | StreamingImages
    start: EncoderSpec | None = None

    def _spec(self, config: PretrainConfig) -> EncoderSpec:
        return encoder_spec(self.store, config, self.start)

    def pace(self, config: PretrainConfig) -> Pace:
        """Of the network on views as they are at the end of the run."""
        x = torch.zeros(2, self.store.channels, config.view_size_end, config.view_size_end)
        return distributed.on_first(lambda: measure_pace(Encoder.create(self._spec(config)).backbone, x))

    def recall_steps(self, config: PretrainConfig) -> dict[str, float] | None:
        """As the first process finds them in the cache directory."""
        known = distributed.on_first(lambda: recall(_kind(config)))
        fits = isinstance(known, dict) and all(isinstance(known.get(k), float) for k in ("images", "fp32", "bf16"))
        return known if fits else None

    def keep_steps(self, config: PretrainConfig, seconds: dict[str, float]) -> None:
        """In the cache directory."""
        distributed.on_first(lambda: keep(_kind(config), seconds))

    def step_times(self, config: PretrainConfig, seconds: float) -> dict[int, float]:
        """As the first process measures them."""
        try:
            return distributed.broadcast_object(step_times(config, self._spec(config), self.images, seconds))
        finally:
            if config.cuda_graphs:  # of a trial that failed, too
                forget_cuda_graphs()

    def seconds_per_image(self, config: PretrainConfig) -> float:
        """From a second evaluation on few images; the final one is of two networks, which share the simple features."""
        encoder = Encoder.create(self._spec(config)).to(config.device)
        # Elsewhere views, of what is scored alone, cost more than the network: no larger a share than in the end.
        more, fewer = (1, 1) if config.device == "cpu" else (8, 4)
        few = full_evaluator(self.store, config).sample(more * TIMED_IMAGES, more * TIMED_IMAGES)
        few = replace(few, score_images=TIMED_IMAGES // fewer)
        few.evaluate(encoder)
        begun = time.perf_counter()
        few.evaluate(encoder)
        network = time.perf_counter() - begun
        few.evaluate_simple(config.image_size)
        simple = time.perf_counter() - begun - network
        return (network + simple / 2) / few.images_read

    def images_of_check(self, config: PretrainConfig) -> int:
        """Images that `check_evaluator` reads."""
        return check_evaluator(self.store, config).images_read

    def images_of_final(self, config: PretrainConfig) -> int:
        """Images that `final_evaluator` reads for each of two encoders, and half of what one alone is shown."""
        if not config.evaluate:
            return 0
        once = min(projected(config), len(self.store.splits["train"]))
        return final_evaluator(self.store, config).images_read + once // 2

    def seconds_of_search(self, config: PretrainConfig) -> float:
        """From thumbnails of some images; what they are compared in takes a second or two at most."""
        parts = parts_if_labelled(self.store, config)
        if parts is None or not config.evaluate:
            return 0.0
        some, begun = parts.train_val.sample(TIMED_IMAGES, config.seed), time.perf_counter()
        thumbnails(some)
        images = min(len(parts.train_val), MOST_TRAIN) + min(len(parts.test), MOST_TEST)
        return (time.perf_counter() - begun) / len(some) * images

    def seconds_of_report(self, image: float) -> float:
        """A third of a minute for 2,000 small images, most of it the map's; none without its packages."""
        if not is_installed() or isinstance(self.images, StreamingImages):
            return 0.0
        images = min(IN_A_RUN, sum(map(len, self.store.splits.values())))
        return REPORT_SECONDS + images * (2 * image + MAP_SECONDS)

    def view_score(self, config: PretrainConfig) -> float:
        """LiDAR of some training images; it is kept, so that a command that was stopped does not start anew."""
        run = repr((mocokit.__version__, self.store.fingerprint, config))
        what = f"views {hashlib.sha256(run.encode()).hexdigest()}"
        if (known := recall(what)) is not None:
            return float(known)
        try:
            encoder = train_briefly(config, self._spec(config), self.images)
            score = lidar(trial_views(encoder, self.store.splits["train"]))
        except (NonFiniteFeatures, NonFiniteLoss):
            score = 0.0  # worse than any other
        keep(what, score)
        return score

    def takes_views(self, config: PretrainConfig) -> bool:
        """Tried on blank images, where they are of another size than the encoder's."""
        spec, sizes = self._spec(config), set(view_sizes(config.view_size, config.view_size_end)) - {config.image_size}
        if not sizes:
            return True
        try:
            check_view_sizes(Encoder.create(spec).backbone, spec.backbone, spec.channels, sizes)
        except UserError:
            return False
        return True


def _kind(config: PretrainConfig) -> str:
    """All of a configuration that the speed of its steps depends on, in bfloat16 beside float32."""
    network = ("backbone", "view_size", "view_size_end", "batch_size", "bn_splits", "symmetric", "compile")
    names = (*network, "head", "head_hidden", "head_dim", "queue_size", "optimizer")
    values = ", ".join(f"{name} {getattr(config, name)}" for name in names)
    return f"steps of {values}, {distributed.world_size()} processes"
