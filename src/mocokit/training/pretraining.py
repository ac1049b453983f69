"""Pretraining by MoCo as the loop trains it; the algorithm itself is in ``model/moco.py``."""

import functools
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric.loggers import Logger
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mocokit import distributed
from mocokit.auto.turns import parse_turns, position
from mocokit.auto.view_sizes import view_size_at, view_sizes
from mocokit.config import PretrainConfig
from mocokit.data.dataset import Batch
from mocokit.data.image_index import Skipped
from mocokit.data.loader import Loader, create_loader
from mocokit.data.recorded_views import augment_recorded
from mocokit.data.sampler import generator, torch_seeded
from mocokit.data.store import ImageSet
from mocokit.data.streaming import StreamingDataset, StreamingImages
from mocokit.data.view_params import augmentations, sample_params
from mocokit.errors import UserError
from mocokit.model.backbones import check_view_sizes, feature_dim, freeze_patch_projection
from mocokit.model.conv import multiply_small
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.heads import create_head, create_predictor
from mocokit.model.moco import MoCo, MoCoV2, MoCoV3, momentum_at
from mocokit.model.norm import freeze_batch_norm, running_statistics, split_batch_norm, sync_batch_norm
from mocokit.model.residual import fuse_residual
from mocokit.resolved import Timetable
from mocokit.rundir import RunDirectory
from mocokit.training.checkpoint import Checkpoints
from mocokit.training.clock import FIRST_STEPS, Stopwatch, check_due, stretch_end, turn
from mocokit.training.compilation import compile_encoders
from mocokit.training.log import Log, MetricsFile, Row, tensorboard, tracker
from mocokit.training.loop import Task, Trainer, create_fabric
from mocokit.training.optim import create_optimizer

COLUMNS = (
    *("step", "epoch", "loss", "loss_over_chance", "lr", "grad_norm", "images_per_second"),
    *("queue_fill", "positive", "negative"),
    *("knn_top1", "knn_low", "knn_high", "knn_top5"),
    *("rankme", "effective_dimension", "alignment", "uniformity", "retrieval"),
)
Measure = Callable[[Encoder, int], dict[str, float]]


class Views(NamedTuple):
    """Two views [b, C, S, S] of this process's share of a batch, whose images they are, and the step."""

    x1: Tensor
    x2: Tensor
    ids: Tensor
    step: int


class Pretraining(Task):
    """MoCo with its views, momentum, and optimizer.

    A run that is extended has a ``restart``, the step at which the schedules of learning rate and momentum begin anew:
    momentum, too, since MoCo v3's ends at 1, where the key encoder stands still. Views stay as large as they had
    become: small ones are for the time when little is known.

    ``sums`` are of the loss, mean positive and negative similarity, gradient norm, and steps. Both backbones start from
    ``weights``, or from random ones.
    """

    def __init__(
        self, config: PretrainConfig, spec: EncoderSpec, restart: int = 0, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.config, self.spec, self.restart = config, spec, restart
        self.moco = create_moco(config, spec, weights).to(memory_format=torch.channels_last)
        if config.compile:
            # DistributedDataParallel copies gradients into buckets of its own, which CUDA graphs can't record.
            compile_encoders(self.moco, config.cuda_graphs and distributed.world_size() == 1)
        self.augmentations = augmentations(config)
        self.register_buffer("sums", torch.zeros(5))
        self.last_step = -1
        self.remedy = (
            f"Start again (--overwrite) with a lower --lr than {config.lr:g}, with --warmup-steps, "
            f"or with --precision fp32"
        )

    @property
    def chance_level(self) -> float:
        """The loss of features that tell nothing apart, once the queue is full."""
        return self.moco.chance_level(self.config.batch_size)

    @property
    def steps_to_fill(self) -> int:
        """How many steps it takes until no random key is left in the queue; 0 if there is none."""
        config = self.config
        return -(-config.queue_size // (config.batch_size * (1 + config.symmetric)))

    def place(self, step: int) -> tuple[float, int]:
        """Where in a schedule of how many steps ``step`` is; of a run that follows the clock that may be in between."""
        turns = parse_turns(self.config.turns)
        return (position(step, turns), turns[0][1]) if turns else (step, self.config.steps)

    def configure_optimizer(self) -> tuple[Optimizer, LRScheduler]:
        """The configured optimizer; the schedule advances every step."""
        return create_optimizer(self.moco.parameters(), self.config, self.restart, self.place)

    def views(self, batch: Batch) -> Views:
        """Both views of each image."""
        x1, x2 = self._view(batch, 0), self._view(batch, 1)
        return Views(x1, x2, batch.ids.to(batch.images.device, non_blocking=True), batch.step)

    def _view(self, batch: Batch, which: int) -> Tensor:
        draw = generator(self.config.seed, f"view {which + 1}", batch.step)
        params = sample_params(self.augmentations[which], batch.sizes, self.spec.channels, draw)
        params = params[distributed.local_slice(len(params))]
        return augment_recorded(batch.images, params, self.view_size(batch.step), self.spec.mean, self.spec.std)

    def view_size(self, step: int) -> int:
        """Side of the views in ``step``, in pixels."""
        last = self.config.view_size_end
        return view_size_at(*self.place(step), last if self.restart else self.config.view_size, last)

    def forward(self, views: Views) -> Tensor:
        """The loss of one step, a float32 scalar."""
        config, shuffle = self.config, None
        self.last_step = views.step
        if config.bn_splits > 1:  # without splits batch norm sees the whole batch, and its order changes nothing
            draw = generator(config.seed, "shuffle", views.step)
            shuffle = torch.randperm(len(views.ids) * distributed.world_size(), generator=draw)
        at, steps = self.place(views.step)
        m = momentum_at(at - self.restart, steps - self.restart, config.momentum, config.momentum_end)
        output = self.moco(views.x1, views.x2, views.ids, shuffle, m)
        self.sums[:3] += torch.stack([part.detach() for part in output])
        self.sums[4] += 1
        return output.loss

    def before_optimizer_step(self) -> None:
        """Sum up the gradient norm, and agree on batch norm's running statistics."""
        if self.config.bn_splits > 1 and distributed.world_size() > 1:
            distributed.all_reduce_mean_(running_statistics(self.moco))
        gradients = [p.grad for p in self._trained if p.grad is not None]
        self.sums[3] += torch.nn.utils.get_total_norm(gradients)

    @functools.cached_property
    def _trained(self) -> list[Tensor]:
        """The parameters that learn, collected once."""
        return [p for p in self.moco.parameters() if p.requires_grad]

    def figures(self, means: list[float], count: float) -> dict[str, float]:
        """The columns of metrics.csv that training gives; loss over chance if no step of the row saw a random key."""
        figures = dict(zip(("loss", "positive", "negative", "grad_norm"), means, strict=True))
        if self.last_step + 1 - count >= self.steps_to_fill:  # known without a word from the device
            figures["loss_over_chance"] = figures["loss"] / self.chance_level
        if isinstance(self.moco, MoCoV2):
            figures["queue_fill"] = float(self.moco.queue.fill)
        return figures


def create_moco(config: PretrainConfig, spec: EncoderSpec, weights: Mapping[str, Tensor] | None = None) -> MoCo:
    """The model at step 0, a function of the configuration's seed and the backbone's ``weights``, if they are given."""
    backbone = Encoder.create(spec, config.seed).backbone
    if weights is not None:
        backbone.load_state_dict(weights)
    sizes = view_sizes(config.view_size, config.view_size_end)
    check_view_sizes(backbone, spec.backbone, spec.channels, set(sizes) - {spec.image_size})
    try:
        if config.bn_splits == 0:
            freeze_batch_norm(backbone)
        elif config.bn_splits == 1:
            backbone = sync_batch_norm(backbone, config.device)
        else:
            split_batch_norm(backbone, max(1, config.bn_splits // distributed.world_size()))
    except TypeError as error:
        remedy = "use --bn-splits 1" if config.bn_splits != 1 else "use one process, or another backbone"
        raise UserError(f"--backbone {spec.backbone}: {error}; {remedy}") from None
    freeze_patch_projection(backbone)
    if config.device == "cpu":
        fuse_residual(multiply_small(backbone))
    features = feature_dim(backbone)
    hidden = config.head_hidden or features
    tau, symmetric = config.temperature, config.symmetric
    with torch_seeded(config.seed, "head and queue"):
        head = create_head(config.head, features, hidden, config.head_dim)
        head = sync_batch_norm(head, config.device)
        predictor = create_predictor(config.head, hidden, config.head_dim)
        predictor = sync_batch_norm(predictor, config.device)
        if config.queue_size == 0:
            return MoCoV3(backbone, head, predictor, tau=tau, symmetric=symmetric)
        K, dim = config.queue_size, config.head_dim
        return MoCoV2(backbone, head, predictor, dim=dim, K=K, tau=tau, symmetric=symmetric)


def pretraining_loader(config: PretrainConfig, images: ImageSet | StreamingImages) -> Loader:
    """Batches of ``images`` as a run of ``config`` has them."""
    device = torch.device(config.device)
    return create_loader(images, batch_size=config.batch_size, seed=config.seed, device=device, workers=config.workers)


def train(
    task: Pretraining,
    images: ImageSet | StreamingImages,
    run: RunDirectory,
    measure: Measure,
    announce: Callable[[Row], None] = lambda row: None,
    report: Callable[[int, int], None] = lambda step, steps: None,
    timetable: Timetable | None = None,
    keep: Callable[[PretrainConfig], None] = lambda config: None,
    pictures: Callable[[], Mapping[str, np.ndarray]] = dict,
) -> list[Skipped]:
    """Train until the last step, from the run's checkpoint if it has one.

    With a ``timetable`` the clock decides how many steps that are, and ``keep`` is called with every new configuration.

    Args:
        task: at step 0; afterwards at the last step, on its device.
        images: to learn from.
        run: where checkpoint and metrics go.
        measure: gives the figures of an encoder at a step.
        announce: gets every row of metrics.csv as it is written.
        report: called with the steps done and in total.
        timetable: of a run with a time budget that begins.
        keep: writes the configuration.
        pictures: what TensorBoard shows of the images.

    Returns:
        Streamed images that turned out to be unusable, in any process, before a stop too; some may be there twice.

    Raises:
        UserError: the checkpoint is damaged or can't be written, or the loss is not finite.
        Interrupted: a signal stopped the run; its checkpoint is written.
    """
    config = task.config
    loader = pretraining_loader(config, images)
    streamed = loader.dataset if isinstance(loader.dataset, StreamingDataset) else None
    trainer = Trainer(task, create_fabric(config.device, config.precision), streamed)
    checkpoints = Checkpoints(run.checkpoint, config.checkpoint_every, task.check_state)

    watch = Stopwatch(FIRST_STEPS[config.cuda_graphs], lambda: checkpoints.writing)

    def evaluate(step: int) -> dict[str, float]:
        if not check_due(step, task.config, loader.per_epoch):
            return {}
        with watch.paused():
            return measure(Encoder(task.moco.backbone, task.spec), step)

    def progress(step: int, _: int) -> None:
        report(step, task.config.steps)
        watch.step_done(step, task.view_size(step - 1))

    def look_at_clock(timetable: Timetable) -> None:
        args = task.config, loader.per_epoch, timetable, watch.since, trainer.step, watch.seconds
        config = distributed.on_first(lambda: turn(*args))
        if config != task.config:
            task.config, log.steps = config, config.steps
            distributed.on_first(lambda: keep(config))

    def weights() -> dict[str, Tensor]:
        named = task.moco.encoder_q.named_parameters(prefix="encoder_q")
        return dict(named) if config.histograms else {}

    log = Log(
        lambda step: loggers(config, run, step),
        per_epoch=loader.per_epoch,
        steps=config.steps,
        batch_size=config.batch_size,
        every=config.log_every,
        evaluate=evaluate,
        weights=weights,
        pictures=pictures,
        announce=announce,
    )
    with checkpoints.catching_signals(), closing(log):
        checkpoints.restore(trainer)
        while trainer.step < task.config.steps or not log.opened:
            watch.start(trainer.step)
            end = stretch_end(trainer.step, loader.per_epoch, task.config) if timetable else task.config.steps
            trainer.fit(loader, end, log=log, checkpoints=checkpoints, report=progress)
            if timetable and watch.since < end < task.config.steps:
                look_at_clock(timetable)
    return distributed.gather_objects(streamed.skipped if streamed else [])


def loggers(config: PretrainConfig, run: RunDirectory, step: int) -> list[Logger]:
    """Where the rows of a run go from ``step`` on; of several processes the first one writes."""
    if distributed.rank() > 0:
        return []
    own: list[Logger] = [MetricsFile(run.metrics, step, COLUMNS), *tensorboard(run.tensorboard, step)]
    return own + ([tracker(config.logger, run.path)] if config.logger else [])
