"""Training from start or checkpoint to the last step: everything is put together here. Read this second."""

import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from mocokit import distributed
from mocokit.config import PretrainConfig
from mocokit.data.augment import view_size_at
from mocokit.data.loader import Batch, Batches, StepSampler
from mocokit.data.store import ImageSet, Skipped
from mocokit.data.streaming import StreamingBatches, StreamingImages
from mocokit.model.encoder import EncoderSpec
from mocokit.rundir import RunDirectory
from mocokit.training.checkpoint import Checkpoints, WholeFileIO, step_of
from mocokit.training.module import Pretraining
from mocokit.training.monitor import Measure, Monitor, Row

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
CALIBRATION_STEPS = 8  # timed ones, after as many untimed ones at most
FIRST_STEPS = {
    False: 1,
    True: 3,
}  # never timed: they compile and set up kernels, with CUDA graphs also record them
CALIBRATION_SHARE = 0.05  # of the time at hand
SIZE_PLACES = 1000  # of a run, at which it is asked for the size of views


def fit(
    module: Pretraining,
    images: ImageSet | StreamingImages,
    run: RunDirectory,
    measure: Measure,
    announce: Callable[[Row], None],
    bar: bool = True,
) -> list[Skipped]:
    """Train until the last step, from the run's checkpoint if it has one.

    Args:
        module: at step 0; afterwards at the last step, on its device.
        images: to learn from.
        run: where checkpoint and metrics go.
        measure: gives the monitored figures of an encoder at a step.
        announce: gets every row of metrics.csv as it is written.
        bar: draw a progress bar if stderr is a terminal.

    Returns:
        Streamed images that turned out to be unusable, in any process.

    Raises:
        UserError: the checkpoint is damaged or can't be written, or the loss is not finite.
        Interrupted: a signal stopped the run; its checkpoint is written.
    """
    config, device = module.config, torch.device(module.config.device)
    with batches_of(images, config, config.steps) as batches:
        monitor = Monitor(config, batches.per_epoch, run.metrics, run.tensorboard, measure, announce)
        checkpoints = Checkpoints(run.checkpoint, config.checkpoint_every, config.steps, module.check_state)
        callbacks = [monitor, checkpoints]
        trainer = create_trainer(
            device, config.precision, config.steps, run.path, callbacks,
            bar and sys.stderr.isatty() and distributed.rank() == 0,
        )  # fmt: skip
        take_steps(trainer, module, batches, checkpoints)
        return distributed.gather_objects(batches.skipped if isinstance(batches, StreamingBatches) else [])


@contextmanager
def batches_of(
    images: ImageSet | StreamingImages, config: PretrainConfig, total: int
) -> Iterator[Batches | StreamingBatches]:
    """The batches of ``total`` steps, from the store or streamed."""
    device = torch.device(config.device)
    if isinstance(images, ImageSet):
        yield Batches(StepSampler(images, config.batch_size, config.seed), total, device, config.workers)
        return
    with closing(
        StreamingBatches(images, config.batch_size, config.seed, total, device, config.workers)
    ) as batches:
        yield batches


def take_steps(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    batches: Batches | StreamingBatches,
    checkpoints: Checkpoints,
) -> None:
    """Train ``module``, from its checkpoint if it has one; a signal stops it at a step boundary.

    Raises:
        UserError, Interrupted: as `fit`.
    """
    # The first process may still have been removing the run that is overwritten when the others got here.
    resumed = distributed.broadcast_object(checkpoints.path.exists())
    if resumed:
        batches.start = step_of(checkpoints.path, module)
    checkpoints.catch_signals()
    try:
        trainer.fit(module, batches, ckpt_path=checkpoints.path if resumed else None, weights_only=True)
    finally:
        checkpoints.restore_signals()
    module.to(batches.device)


def create_trainer(
    device: torch.device, precision: str, steps: int, root: Path, callbacks: list[pl.Callback], bar: bool
) -> pl.Trainer:
    """A Lightning trainer that takes ``steps`` steps, with a progress ``bar`` or silently.

    To Lightning the whole run is one epoch: the batches of all steps in order. So there is one kind of resume,
    from the middle, and the epochs that users see are counted from the step (`StepSampler.per_epoch`).
    """
    _quiet_lightning()
    if bar:
        callbacks = [*callbacks, RichProgressBar(leave=False, console_kwargs={"stderr": True})]
    strategy: Any = "auto"
    if distributed.world_size() > 1:
        # No buffers are broadcast: queues are equal as they are, and batch norm's statistics are averaged.
        strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), broadcast_buffers=False)
    return pl.Trainer(
        default_root_dir=root,
        accelerator=device.type,
        devices=distributed.local_world_size(),
        num_nodes=distributed.world_size() // distributed.local_world_size(),
        strategy=strategy,
        use_distributed_sampler=False,
        precision=PRECISION[precision],  # type: ignore[arg-type]
        max_epochs=1,
        max_steps=steps,
        callbacks=callbacks,
        plugins=[WholeFileIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
    )


def _quiet_lightning() -> None:
    """Lightning's notices speak to its programmers, not to the users of a command."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning.*")
    warnings.filterwarnings("ignore", message=r".*(isinstance\(treespec|lr_scheduler\.step).*")


def seconds_per_step(
    config: PretrainConfig, spec: EncoderSpec, images: ImageSet | StreamingImages, seconds: float
) -> float:
    """Mean time of the run's training steps, by taking a few on a model that is then thrown away.

    Args:
        config, spec, images: of the run to come.
        seconds: how long this may take, about, without first steps; one step is timed in any case with views of each
            size.
    """
    shares = view_shares(config)
    module = Pretraining(config, spec).to(torch.device(config.device))
    optimizer = module.configure_optimizers()["optimizer"]
    mean, most = 0.0, 2 * CALIBRATION_STEPS
    with batches_of(images, config, most * len(shares)) as batches:
        coming = iter(batches)
        for size, share in shares.items():
            module.config = replace(config, view_size=size, view_size_end=size)
            mean += share * _seconds_per_step(module, optimizer, islice(coming, most), seconds / len(shares))
    return mean


def view_shares(config: PretrainConfig) -> dict[int, float]:
    """The sizes that views have in the course of a run, and the share of its steps that each has."""
    sizes = (view_size_at(i, SIZE_PLACES, config.view_size, config.view_size_end) for i in range(SIZE_PLACES))
    return {size: count / SIZE_PLACES for size, count in Counter(sizes).items()}


def _seconds_per_step(
    module: Pretraining, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], seconds: float
) -> float:
    device, bf16 = module.device.type, module.config.precision == "bf16"
    first = FIRST_STEPS[module.config.cuda_graphs]
    times: list[float] = []
    for batch in batches:
        begun = time.perf_counter()
        views = module.on_after_batch_transfer(batch, 0)
        with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):  # as Lightning's
            loss = module.training_step(views, 0)
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())  # waits for the device
        times.append(time.perf_counter() - begun)
        if len(times) > first and any(distributed.any_rank(sum(times[first:]) > seconds)):
            break  # all processes at the same step
    settled = times[max(first, len(times) // 2) :]
    return sum(settled) / len(settled)
