"""The sgd protocol of the linear probe: a linear layer trained on augmented images, the encoder frozen."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning_fabric.loggers import Logger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mocokit.config import ProbeConfig
from mocokit.data.classifier_views import flip_probability, training_view
from mocokit.data.dataset import Batch
from mocokit.data.loader import create_loader
from mocokit.data.sampler import generator
from mocokit.data.store import ImageSet
from mocokit.errors import UserError
from mocokit.files import write_csv
from mocokit.model.encoder import Encoder, evaluating
from mocokit.rundir import RunDirectory
from mocokit.training.log import Log, Row, tensorboard
from mocokit.training.loop import Task, Trainer, create_fabric

INITIAL_STD = 0.01
COLUMNS = ("epoch", "loss", "val_top1")


class LinearProbe(Task):
    """A linear layer on the features of a frozen encoder; ``sums`` are of the loss, and steps."""

    labels: Tensor

    def __init__(self, encoder: Encoder, images: ImageSet, classes: int, config: ProbeConfig, steps: int) -> None:
        super().__init__()
        assert images.labels is not None
        self.frozen = (encoder,)  # in a tuple: no part of what is trained
        self.config, self.steps = config, steps
        self.layer = nn.Linear(encoder.dim, classes)
        draw = generator(config.seed, "probe weights")
        with torch.no_grad():
            self.layer.weight.copy_(INITIAL_STD * torch.randn(classes, encoder.dim, generator=draw))
            self.layer.bias.zero_()
        self.register_buffer("labels", torch.from_numpy(images.labels), persistent=False)
        self.register_buffer("sums", torch.zeros(2))

    def configure_optimizer(self) -> tuple[Optimizer, LRScheduler]:
        """SGD without momentum and weight decay; half a cosine to 0."""
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=self.config.lr)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)

    @torch.no_grad()
    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features [B, D] float32 of one light augmentation of each image, and labels [B]."""
        (encoder,) = self.frozen
        spec, draw = encoder.spec, generator(self.config.seed, "probe view", batch.step)
        flip_p = flip_probability(spec.channels)
        with evaluating(encoder):
            x = training_view(batch.images, batch.sizes, spec.image_size, spec.mean, spec.std, draw, flip_p)
            features: Tensor = encoder.backbone(x).float()
        return features, self.labels[batch.ids.to(features.device)]

    def forward(self, views: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy, a float32 scalar."""
        features, labels = views
        loss = cross_entropy(self.layer(features), labels)
        self.sums += torch.stack([loss.detach(), torch.ones_like(loss)])
        return loss

    def figures(self, means: list[float], count: float) -> dict[str, float]:
        """The loss of an epoch."""
        return {"loss": means[0]}

    def check_finite(self, step: int) -> None:
        """Raise `UserError` if the loss was not a number."""
        if not torch.isfinite(self.sums).all():
            raise UserError(
                f"the loss is infinite or not a number: --lr {self.config.lr:g} is too high, or so was the --lr of "
                f"pretraining; train again with a lower one"
            )


class Trained(NamedTuple):
    """The layer after the last epoch, ``weight`` [C, D] and ``bias`` [C] float32 on the CPU, and its mean ``loss``."""

    weight: Tensor
    bias: Tensor
    loss: float


def sgd(
    encoder: Encoder,
    images: ImageSet,
    indices: Tensor,
    val: tuple[Tensor, Tensor] | None,
    classes: int,
    config: ProbeConfig,
    *,
    run: RunDirectory | None = None,
    announce: Callable[[Row], None] = lambda row: None,
) -> Trained:
    """Train a linear layer on augmented images by SGD: He et al. 2020, section 4.1.

    Learning rate 30, no weight decay and no momentum, as in the notebook that mocokit grew from; weights start from
    N(0, 0.01^2). The learning rate follows half a cosine, step by step, to 0. Nothing is chosen by validation: the
    classifier to use is that of the last epoch.

    Args:
        encoder: only read; in evaluation mode meanwhile.
        images, indices: labelled images and which of them [N] int64 to train on.
        val: features [M, D] and labels [M] to report accuracy on; or None.
        classes: C.
        config: epochs, batch_size, lr, seed.
        run: where ``probe-sgd.csv`` and TensorBoard's events of each epoch go; or None.
        announce: gets ``{step, epoch, loss, val_top1, ...}`` of each epoch.

    Raises:
        UserError: the loss is infinite or not a number.
    """
    loader = create_loader(
        images, batch_size=config.batch_size, seed=config.seed, device=encoder.device, workers=0, rows=indices
    )
    steps = config.epochs * loader.per_epoch
    task = LinearProbe(encoder, images, classes, config, steps)
    rows: list[Row] = []

    def evaluate(step: int) -> dict[str, float]:
        if val is None:
            return {}
        features, labels = val
        predicted = linear(features, *_on_cpu(task.layer)).argmax(dim=1)
        return {"val_top1": float((predicted == labels).double().mean())}

    def keep(row: Row) -> None:
        rows.append(row)
        if run is not None:  # all of them, so that of two commands at once none mixes its rows with those of the other
            cells = [[f"{row[name]:.6g}" if name in row else "" for name in COLUMNS] for row in rows]
            write_csv(run.path / "probe-sgd.csv", COLUMNS, cells)
        announce(row)

    def loggers(step: int) -> list[Logger]:
        return [] if run is None else tensorboard(run.tensorboard / "probe-sgd", step)

    log = Log(
        loggers,
        per_epoch=loader.per_epoch,
        steps=steps,
        batch_size=config.batch_size,
        first_row=False,
        evaluate=evaluate,
        weights=lambda: dict(task.layer.named_parameters()),
        announce=keep,
    )
    Trainer(task, create_fabric(encoder.device.type, "fp32")).fit(loader, steps, log=log)
    log.close()
    return Trained(*_on_cpu(task.layer), rows[-1]["loss"])


def _on_cpu(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().cpu().clone(), layer.bias.detach().cpu().clone()
