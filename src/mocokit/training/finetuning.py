"""Supervised training of backbone and linear classifier, from pretrained or from random weights.

Stopped and resumed like pretraining; the weights of the best validation epoch are its result.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mocokit.config import FinetuneConfig
from mocokit.data.classifier_views import flip_probability, training_view
from mocokit.data.dataset import Batch
from mocokit.data.loader import Loader, create_loader
from mocokit.data.sampler import generator, torch_seeded
from mocokit.data.store import ImageSet
from mocokit.machine import computes_in_bf16, usable_cores
from mocokit.model.conv import multiply_small
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import encoding_precision
from mocokit.model.norm import freeze_batch_norm
from mocokit.model.residual import fuse_residual
from mocokit.rundir import RunDirectory
from mocokit.training.checkpoint import Checkpoints
from mocokit.training.log import Log, MetricsFile, Row
from mocokit.training.loop import Task, Trainer, create_fabric
from mocokit.training.optim import lr_factor
from mocokit.training.timing import TIMED_STEPS, Stopwatch

COLUMNS = ("step", "epoch", "loss", "top1", "val_top1", "lr", "images_per_second")
WARMUP_SHARE = 0.05  # of the schedule
CHECKPOINT_SECONDS = 60.0  # between checkpoints

Validate = Callable[[Encoder], float]


def attach_classifier(encoder: Encoder, classes: tuple[str, ...], seed: int) -> Encoder:
    """The same encoder, not a copy, with a new classifier: a function of the seed, its weights from N(0, 0.01^2)."""
    with torch_seeded(seed, "classifier"):
        encoder.classifier = nn.Linear(encoder.dim, len(classes))
        nn.init.normal_(encoder.classifier.weight, std=0.01)
        nn.init.zeros_(encoder.classifier.bias)
    encoder.classes = classes
    return encoder


class Finetuning(Task):
    """Encoder and classifier, and the encoder of the best epoch so far.

    ``sums`` are of the loss, right answers, and images; ``best`` is the encoder as it was after ``best_epoch``, with
    ``best_top1`` on validation. If there is ``small``, the weights of a classifier, the start is measured with the one
    that it has, and what is trained begins with these, for which ``patience`` waits until they are better than it.
    """

    labels: Tensor
    small: dict[str, Tensor] | None = None
    restarted: Tensor
    best_epoch: Tensor
    best_top1: Tensor

    def __init__(
        self, encoder: Encoder, config: FinetuneConfig, images: ImageSet, rows: Tensor, keep_statistics: bool = False
    ) -> None:
        """``encoder`` has a classifier and is trained in place, on those of the labelled ``images`` in ``rows`` [N].

        ``keep_statistics``: those of its batch norm stay, as in pretraining that goes on from weights.
        """
        super().__init__()
        assert images.labels is not None
        assert config.lr is not None
        assert config.batch_size is not None
        # A loaded encoder is in evaluation mode, where its batch norm would stay frozen.
        self.encoder = encoder.to(memory_format=torch.channels_last).train()
        if keep_statistics:
            freeze_batch_norm(self.encoder.backbone)
        self.best = copy.deepcopy(self.encoder).requires_grad_(False)
        self.config, self.lr, self.images, self.rows = config, config.lr, images, rows
        self.batch_size = min(config.batch_size, len(rows))
        self.per_epoch = len(rows) // self.batch_size
        self.steps = config.epochs * self.per_epoch
        self.register_buffer("labels", torch.from_numpy(images.labels), persistent=False)
        self.register_buffer("sums", torch.zeros(3))
        self.register_buffer("restarted", torch.tensor(False))
        self.register_buffer("best_epoch", torch.tensor(0))
        self.register_buffer("best_top1", torch.tensor(-1.0))
        self.remedy = f"Start again (--overwrite) with a lower --lr than {config.lr:g}"

    def configure_optimizer(self) -> tuple[Optimizer, LRScheduler]:
        """AdamW with a learning rate of its own for each layer; cosine after a short linear warm-up."""
        groups = layer_groups(self.encoder, self.lr, self.config.layer_decay, self.config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        warmup = round(WARMUP_SHARE * self.steps)

        def factor(step: int) -> float:
            return lr_factor(step, steps=self.steps, warmup=warmup, schedule="cosine")

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Views [B, C, S, S] and labels [B]."""
        spec, draw = self.encoder.spec, generator(self.config.seed, "training view", batch.step)
        flip_p = flip_probability(spec.channels)
        x = training_view(batch.images, batch.sizes, spec.image_size, spec.mean, spec.std, draw, flip_p)
        ids = batch.ids.to(batch.images.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last), self.labels[ids]

    def forward(self, views: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy, a float32 scalar."""
        x, labels = views
        assert self.encoder.classifier is not None
        logits = self.encoder.classifier(self.encoder.backbone(x)).float()
        loss = cross_entropy(logits, labels)
        right = (logits.argmax(dim=1) == labels).sum()
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([loss.detach() * count, right.to(loss.dtype), count])
        return loss

    def figures(self, means: list[float], count: float) -> dict[str, float]:
        """The columns of metrics.csv that training gives."""
        return dict(zip(("loss", "top1"), means, strict=True))

    def compare(self, epoch: int, top1: float) -> None:
        """Keep the weights if they are better on validation than all before; of equals the first stay."""
        if top1 > self.best_top1:
            self.best.load_state_dict(self.encoder.state_dict())
            self.best_epoch.fill_(epoch)
            self.best_top1.fill_(top1)
        if epoch == 0 and self.small:
            assert self.encoder.classifier is not None
            self.encoder.classifier.load_state_dict(self.small)
            self.restarted.fill_(True)

    def has_converged(self, step: int) -> bool:
        """Whether ``patience`` epochs up to ``step`` brought nothing better."""
        epoch, within = divmod(step, self.per_epoch)
        waits = within or (self.restarted and not self.best_epoch)
        return not waits and 0 < self.config.patience <= epoch - int(self.best_epoch)


def layer_groups(encoder: Encoder, lr: float, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW; biases and norms are not decayed.

    The learning rate shrinks by ``layer_decay`` from the classifier to the last layer of the backbone, and on
    to each layer before it (Clark et al. 2020, ELECTRA; BEiT). Layers are those of timm's ``group_matcher``.
    """
    assert encoder.classifier is not None
    undecayed: set[str] = getattr(encoder.backbone, "no_weight_decay", set)()
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        encoder.backbone, weight_decay, no_weight_decay_list=undecayed, layer_decay=layer_decay
    )
    for group in groups:
        group["lr"] = lr * layer_decay * group.pop("lr_scale")
    weight, bias = encoder.classifier.weight, encoder.classifier.bias
    return [*groups, {"params": [weight], "weight_decay": weight_decay}, {"params": [bias], "weight_decay": 0.0}]


def train_classifier(
    task: Finetuning,
    run: RunDirectory,
    validate: Validate,
    announce: Callable[[Row], None] = lambda row: None,
    report: Callable[[int, int], None] = lambda step, steps: None,
) -> Encoder:
    """Train until the last epoch or until validation stops improving, from the run's checkpoint if it has one.

    Args:
        task: at step 0.
        run: where checkpoint and metrics go.
        validate: top-1 accuracy of an encoder on the validation part; it leaves the encoder as it is.
        announce: gets every row of metrics.csv as it is written.
        report: called with the steps done and in total.

    Returns:
        The encoder with its classifier as it was after the best epoch (0: as it came), in evaluation mode.

    Raises:
        UserError: the checkpoint is damaged or can't be written, or the loss is not finite.
        Interrupted: a signal stopped the run; its checkpoint is written.
    """
    loader, trainer = _prepare(task)
    checkpoints = Checkpoints(run.checkpoint, CHECKPOINT_SECONDS, task.check_state)

    def evaluate(step: int) -> dict[str, float]:
        top1 = validate(task.encoder)
        task.compare(step // task.per_epoch, top1)
        return {"val_top1": top1}

    log = Log(
        lambda step: [MetricsFile(run.metrics, step, COLUMNS)],
        per_epoch=task.per_epoch,
        steps=task.steps,
        batch_size=task.batch_size,
        evaluate=evaluate,
        announce=announce,
    )
    with checkpoints.catching_signals():
        checkpoints.restore(trainer)
        trainer.fit(loader, task.steps, log=log, checkpoints=checkpoints, stop=task.has_converged, report=report)
    return task.best.eval()


def _prepare(task: Finetuning) -> tuple[Loader, Trainer]:
    """The batches, and the task on its device in the precision that is fastest there."""
    config = task.config
    assert config.device is not None
    device = torch.device(config.device)
    precision = "bf16" if device.type == "cuda" and computes_in_bf16("cuda") else "fp32"
    if device.type == "cpu":
        fuse_residual(task.encoder.backbone)
    if device.type == "cpu" and encoding_precision(task.encoder, len(task.rows)) == "bf16":
        precision = "bf16"
        multiply_small(task.encoder.backbone)
    loader = create_loader(
        task.images, batch_size=task.batch_size, seed=config.seed, device=device, workers=usable_cores(), rows=task.rows
    )
    return loader, Trainer(task, create_fabric(config.device, precision))


def starting_loss(task: Finetuning) -> float:
    """Cross entropy of the first batch as training sees it, its views and batch norm; ``task`` is thrown away."""
    loader, trainer = _prepare(task)
    with torch.no_grad(), torch_seeded(task.config.seed, "starting loss"):  # no draw of the program's is used up
        return float(trainer.model(task.views(next(loader.batches(0, 1)))))


def step_time(task: Finetuning, seconds: float) -> float:
    """Mean time of a step in seconds, from about ``seconds`` of steps; ``task`` is thrown away afterwards."""
    loader, trainer = _prepare(task)
    stopwatch = Stopwatch(loader.device.type, seconds)
    trainer.fit(loader, TIMED_STEPS, stop=stopwatch)
    return stopwatch.mean
