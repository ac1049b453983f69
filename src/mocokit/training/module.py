"""One optimizer step of MoCo as Lightning wants it; the algorithm itself is in ``model/moco.py``."""

from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from mocokit import distributed
from mocokit.config import PretrainConfig
from mocokit.data.augment import augment, augmentations, sample_params, view_size_at, view_sizes
from mocokit.data.loader import Batch
from mocokit.data.sampler import generator
from mocokit.errors import UserError
from mocokit.model.backbones import check_view_sizes, feature_dim, freeze_patch_projection
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.heads import create_head, create_predictor
from mocokit.model.moco import MoCo
from mocokit.model.momentum import momentum_at
from mocokit.model.norm import running_statistics, split_batch_norm, sync_batch_norm
from mocokit.seeding import derive_seed
from mocokit.training.compilation import compile_encoders
from mocokit.training.optim import create_optimizer

LOSS, POSITIVE, NEGATIVE, GRAD_NORM, COUNT = range(5)


class Views(NamedTuple):
    """Two views [b, C, S, S] of this process's share of a batch, whose images they are, and the step."""

    x1: Tensor
    x2: Tensor
    ids: Tensor
    step: int


def create_moco(config: PretrainConfig, spec: EncoderSpec) -> MoCo:
    """The model at step 0, a function of the configuration's seed alone."""
    backbone = Encoder.create(spec, config.seed).backbone
    sizes = view_sizes(config.view_size, config.view_size_end)
    check_view_sizes(backbone, spec.backbone, spec.channels, set(sizes) - {spec.image_size})
    try:
        if config.bn_splits == 1:
            backbone = sync_batch_norm(backbone, config.device)
        else:
            split_batch_norm(backbone, max(1, config.bn_splits // distributed.world_size()))
    except TypeError as error:
        way_out = "use --bn-splits 1" if config.bn_splits > 1 else "use one process, or another backbone"
        raise UserError(f"--backbone {spec.backbone}: {error}; {way_out}") from None
    freeze_patch_projection(backbone)
    features = feature_dim(backbone)
    hidden = config.head_hidden or features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "head and queue"))
        return MoCo(
            backbone,
            sync_batch_norm(create_head(config.head, features, hidden, config.head_dim), config.device),
            sync_batch_norm(create_predictor(config.head, hidden, config.head_dim), config.device),
            dim=config.head_dim,
            K=config.queue_size,
            tau=config.temperature,
            symmetric=config.symmetric,
        )


class NonFiniteLoss(UserError):
    """The loss, its gradient or the weights are no longer finite numbers."""

    def __init__(self, what: str, step: int, lr: float, remedies: str = "") -> None:
        super().__init__(
            f"step {step:,}: {what} not finite, so the run stops; an earlier checkpoint is kept. Start again "
            f"(--overwrite) with a lower --lr than {lr:g}{remedies}"
        )


class Pretraining(pl.LightningModule):
    """Views, loss and optimizer of a pretraining run.

    The buffer ``window`` [5] sums loss, mean positive and negative similarity, gradient norm and a count over
    the steps since it was last taken; being a buffer it is part of every checkpoint.
    """

    window: Tensor

    def __init__(self, config: PretrainConfig, spec: EncoderSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.moco = create_moco(config, spec).to(memory_format=torch.channels_last)
        if config.compile:
            # Several processes put their gradients into buckets of their own, which graphs do not bear.
            compile_encoders(self.moco, config.cuda_graphs and distributed.world_size() == 1)
        self.augmentations = augmentations(config)
        self.register_buffer("window", torch.zeros(5))

    @property
    def chance_level(self) -> float:
        """The loss of features that tell nothing apart."""
        return self.moco.chance_level(self.config.batch_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """`Batches` has put the images where they belong; the rest stays on the host on purpose."""
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Views:
        """Draw both views, outside of autocast."""
        x1, x2 = self._view(batch, 0), self._view(batch, 1)
        return Views(x1, x2, batch.ids.to(batch.images.device, non_blocking=True), batch.step)

    def _view(self, batch: Batch, which: int) -> Tensor:
        config = self.config
        draw = generator(config.seed, f"view {which + 1}", batch.step)
        params = sample_params(self.augmentations[which], batch.sizes, self.spec.channels, draw)
        params = params[distributed.local_slice(len(params))]
        size = view_size_at(batch.step, config.steps, config.view_size, config.view_size_end)
        x = augment(batch.images, params, size, self.spec.mean, self.spec.std)
        return x.contiguous(memory_format=torch.channels_last)

    def training_step(self, views: Views, batch_idx: int) -> Tensor:
        """The loss of one step, a float32 scalar."""
        config, shuffle = self.config, None
        if config.bn_splits > 1:  # else the whole batch shares its statistics, and its order is nothing to it
            draw = generator(config.seed, "shuffle", views.step)
            shuffle = torch.randperm(len(views.ids) * distributed.world_size(), generator=draw)
        m = momentum_at(views.step, config.steps, config.momentum, config.momentum_end)
        contrast = self.moco(views.x1, views.x2, views.ids, shuffle, m)
        self.window[:GRAD_NORM] += torch.stack([part.detach() for part in contrast])
        self.window[COUNT] += 1
        return contrast.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sum up the gradient norm, and agree on batch norm's running statistics."""
        distributed.all_reduce_mean_(running_statistics(self.moco) if self.config.bn_splits > 1 else [])
        gradients = [p.grad for p in self.moco.parameters() if p.grad is not None]
        self.window[GRAD_NORM] += torch.nn.utils.get_total_norm(gradients)

    def configure_optimizers(self) -> Any:
        """The configured optimizer; the schedule advances every step."""
        optimizer, scheduler = create_optimizer(self.moco.parameters(), self.config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def check_finite(self) -> None:
        """Raise `NonFiniteLoss` if anything since the window was last taken was not a number."""
        if not torch.isfinite(self.window).all():
            raise self._not_finite("the loss or its gradient is")

    def check_state(self) -> None:
        """`check_finite`, and the same for the weights: the last step may have been the one too far."""
        self.check_finite()
        if not all(torch.isfinite(tensor).all() for tensor in self.moco.state_dict().values()):
            raise self._not_finite("the weights are")

    def _not_finite(self, what: str) -> NonFiniteLoss:
        remedies = ", with --warmup-steps, or with --precision fp32"
        return NonFiniteLoss(what, self.global_step, self.config.lr, remedies)

    def take_window(self) -> dict[str, float]:
        """Means over the steps since the last call, which starts a new window."""
        self.check_finite()
        distributed.all_reduce_mean_([self.window])
        loss, positive, negative, grad_norm, count = self.window.tolist()
        self.window.zero_()
        n = max(1.0, count)
        return {
            "loss": loss / n,
            "loss_over_chance": loss / n / self.chance_level,
            "positive": positive / n,
            "negative": negative / n,
            "grad_norm": grad_norm / n,
        } | ({} if self.moco.queue is None else {"queue_fill": float(self.moco.queue.fill)})
