"""Supervised training of backbone and linear classifier, from pretrained or from random weights.

Run, stopped and resumed like pretraining (``fit.py``); the weights of the best validation epoch are its result.
"""

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mocokit.config import FinetuneConfig
from mocokit.data.classifier_views import flip_probability, training_view
from mocokit.data.loader import Batch, Batches, StepSampler
from mocokit.data.sampler import generator
from mocokit.machine import usable_cores
from mocokit.model.encoder import Encoder
from mocokit.rundir import RunDirectory
from mocokit.seeding import derive_seed
from mocokit.training.checkpoint import Checkpoints
from mocokit.training.fit import create_trainer, take_steps
from mocokit.training.module import NonFiniteLoss
from mocokit.training.monitor import MetricsFile, Row
from mocokit.training.optim import lr_factor

COLUMNS = ("step", "epoch", "loss", "top1", "val_top1", "lr", "images_per_second")
WARMUP_SHARE = 0.05  # of the schedule
CHECKPOINT_SECONDS = 60.0  # between checkpoints
LOSS, RIGHT, COUNT = range(3)

Validate = Callable[[Encoder], float]


def attach_classifier(encoder: Encoder, classes: tuple[str, ...], seed: int) -> Encoder:
    """The same encoder, not a copy, with a new classifier: a function of the seed, its weights from N(0, 0.01^2)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        encoder.classifier = nn.Linear(encoder.dim, len(classes))
        nn.init.normal_(encoder.classifier.weight, std=0.01)
        nn.init.zeros_(encoder.classifier.bias)
    encoder.classes = classes
    return encoder


class Finetuning(pl.LightningModule):
    """Views, loss, optimizer and the best epoch of a supervised run.

    All that a resumed run needs is in the state dict: ``window`` [3] sums loss, right answers and images over
    the current epoch; ``best`` is the encoder as it was after ``best_epoch``, with ``best_top1`` on validation.
    """

    labels: Tensor
    window: Tensor
    best_epoch: Tensor
    best_top1: Tensor

    def __init__(self, encoder: Encoder, config: FinetuneConfig, steps: StepSampler) -> None:
        """``encoder`` has a classifier and is trained in place; ``steps`` are over labelled images."""
        super().__init__()
        assert steps.images.labels is not None
        assert config.lr is not None
        # Lightning leaves modes alone, and a loaded encoder evaluates: its batch norm would stay frozen.
        self.encoder = encoder.to(memory_format=torch.channels_last).train()
        self.best = copy.deepcopy(self.encoder).requires_grad_(False)
        self.config, self.lr = config, config.lr
        self.steps, self.total = steps, config.epochs * steps.per_epoch
        self.register_buffer("labels", torch.from_numpy(steps.images.labels), persistent=False)
        self.register_buffer("window", torch.zeros(3))
        self.register_buffer("best_epoch", torch.tensor(0))
        self.register_buffer("best_top1", torch.tensor(-1.0))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """`Batches` has put the images where they belong; the rest stays on the host on purpose."""
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Views [B, C, S, S] and labels [B], outside of autocast."""
        spec, draw = self.encoder.spec, generator(self.config.seed, "training view", batch.step)
        flip_p = flip_probability(spec.channels)
        x = training_view(batch.images, batch.sizes, spec.image_size, spec.mean, spec.std, draw, flip_p)
        ids = batch.ids.to(batch.images.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last), self.labels[ids]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy, a float32 scalar."""
        x, labels = batch
        assert self.encoder.classifier is not None
        logits = self.encoder.classifier(self.encoder.backbone(x)).float()
        loss = cross_entropy(logits, labels)
        right = (logits.argmax(dim=1) == labels).sum()
        count = torch.full_like(loss, len(labels))
        self.window += torch.stack([loss.detach() * count, right.to(loss.dtype), count])
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with a learning rate of its own for each layer; cosine after a short linear warm-up."""
        groups = layer_groups(self.encoder, self.lr, self.config.layer_decay, self.config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        warmup = round(WARMUP_SHARE * self.total)

        def factor(step: int) -> float:
            return lr_factor(step, steps=self.total, warmup=warmup, schedule="cosine")

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def check_finite(self) -> None:
        """Raise `NonFiniteLoss` if the loss was not a number since the window was last taken."""
        if not torch.isfinite(self.window).all():
            raise NonFiniteLoss("the loss is", self.global_step, self.lr)

    def check_state(self) -> None:
        """`check_finite`, and the same for the weights."""
        self.check_finite()
        if not all(torch.isfinite(tensor).all() for tensor in self.encoder.state_dict().values()):
            raise NonFiniteLoss("the weights are", self.global_step, self.lr)

    def take_window(self) -> dict[str, float]:
        """Means over the images since the last call, which starts a new window."""
        self.check_finite()
        loss, right, count = self.window.tolist()
        self.window.zero_()
        return {"loss": loss / count, "top1": right / count}

    def compare(self, epoch: int, top1: float) -> None:
        """Keep the weights if they are better on validation than all before; of equals the first stay."""
        if top1 > self.best_top1:
            self.best.load_state_dict(self.encoder.state_dict())
            self.best_epoch.fill_(epoch)
            self.best_top1.fill_(top1)

    def has_converged(self, epoch: int) -> bool:
        """Whether ``patience`` epochs up to ``epoch`` brought nothing better."""
        return 0 < self.config.patience <= epoch - int(self.best_epoch)


def layer_groups(
    encoder: Encoder, lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
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
    return [
        *groups,
        {"params": [weight], "weight_decay": weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]


class EpochEnds(pl.Callback):
    """At step 0 and after each epoch: validation, the best weights, a row of metrics.csv, whether to stop early."""

    def __init__(self, metrics: Path, validate: Validate, announce: Callable[[Row], None]) -> None:
        self.metrics, self.validate, self.announce = metrics, validate, announce

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open metrics.csv at the checkpoint's step, which may be that of an early stop."""
        assert isinstance(module, Finetuning)
        step = trainer.global_step
        self.file = MetricsFile(self.metrics, step, COLUMNS)
        if step == 0:
            self._validated(trainer, module, {"step": 0, "epoch": 0})
        else:
            trainer.should_stop = module.has_converged(step // module.steps.per_epoch)
        self._start_clock(step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Once an epoch is complete."""
        assert isinstance(module, Finetuning)
        if module.device.type == "cpu":
            module.check_finite()  # elsewhere this would wait for the device at each step
        step = trainer.global_step
        epoch, within = divmod(step, module.steps.per_epoch)
        if within:
            return
        row: Row = {"step": step, "epoch": epoch} | module.take_window()
        images = module.steps.batch_size * (step - self.clock_step)
        row["images_per_second"] = images / (time.perf_counter() - self.clock)
        row["lr"] = float(trainer.optimizers[0].param_groups[-1]["lr"])  # the classifier's
        self._validated(trainer, module, row)
        self._start_clock(step)

    def _validated(self, trainer: pl.Trainer, module: Finetuning, row: Row) -> None:
        row["val_top1"] = self.validate(module.encoder)
        module.compare(row["epoch"], row["val_top1"])
        trainer.should_stop = module.has_converged(row["epoch"])
        self.file.append(row)
        self.announce(row)

    def _start_clock(self, step: int) -> None:
        self.clock, self.clock_step = time.perf_counter(), step


def train_classifier(
    module: Finetuning, run: RunDirectory, validate: Validate, announce: Callable[[Row], None]
) -> Encoder:
    """Train until the last epoch or until validation stops improving, from the run's checkpoint if it has one.

    Args:
        module: at step 0.
        run: where checkpoint and metrics go.
        validate: top-1 accuracy of an encoder on the validation part; it leaves the encoder as it is.
        announce: gets every row of metrics.csv as it is written.

    Returns:
        The encoder with its classifier as it was after the best epoch (0: as it came), in evaluation mode.

    Raises:
        UserError: the checkpoint is damaged or can't be written, or the loss is not finite.
        Interrupted: a signal stopped the run; its checkpoint is written.
    """
    assert module.config.device is not None
    device, steps = torch.device(module.config.device), module.steps
    batches = Batches(steps, module.total, device, workers=usable_cores())
    checkpoints = Checkpoints(run.checkpoint, CHECKPOINT_SECONDS, module.total, module.check_state)
    callbacks = [EpochEnds(run.metrics, validate, announce), checkpoints]
    precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    trainer = create_trainer(device, precision, module.total, run.path, callbacks, bar=sys.stderr.isatty())
    take_steps(trainer, module, batches, checkpoints)
    return module.best.eval()
