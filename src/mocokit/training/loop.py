"""The training loop: pretraining, fine-tuning, the probe by SGD and the timing of steps all go through `Trainer.fit`.

Lightning's Fabric brings devices, precision and DistributedDataParallel; what happens in a step stands here.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mocokit import distributed
from mocokit.data.dataset import Batch
from mocokit.data.loader import Loader
from mocokit.data.streaming import StreamingDataset
from mocokit.errors import UserError
from mocokit.machine import CORES
from mocokit.model.encoder import NonFiniteFeatures
from mocokit.training.checkpoint import Checkpoints
from mocokit.training.log import Log

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}


class NonFiniteLoss(UserError):
    """The loss, its gradient or the weights are no longer finite numbers."""

    def __init__(self, what: str, step: int, remedy: str) -> None:
        super().__init__(f"step {step:,}: {what} not finite, so the run stops; an earlier checkpoint is kept. {remedy}")


class Task(nn.Module):
    """What the loop trains: the forward pass gives the loss, and the state dict holds all that a resumed run needs.

    ``sums`` [n] adds up what a row of metrics averages, the last entry being the number of steps or images; being a
    buffer it is part of every checkpoint, so rows after a resume are those of a run that was never interrupted, of
    several processes up to rounding.
    """

    sums: Tensor
    remedy = ""  # what to do about a loss that is not finite

    def configure_optimizer(self) -> tuple[Optimizer, LRScheduler]:
        """The optimizer over the parameters that are not frozen, and the schedule that advances every step."""
        raise NotImplementedError

    def views(self, batch: Batch) -> Any:
        """What `forward` takes: augmented on the batch's device, in full precision."""
        raise NotImplementedError

    def forward(self, views: Any) -> Tensor:
        """The loss, a float32 scalar."""
        raise NotImplementedError

    def before_optimizer_step(self) -> None:
        """Called when the gradients are there."""

    def means(self) -> dict[str, float]:
        """The figures of a row, by name: means since the last call, which starts anew."""
        distributed.all_reduce_mean_([self.sums])
        *sums, count = self.sums.tolist()
        self.sums.zero_()
        return self.figures([value / count for value in sums], count)

    def figures(self, means: list[float], count: float) -> dict[str, float]:
        """The names of the means, which are over ``count`` steps or images."""
        raise NotImplementedError

    def check_finite(self, step: int) -> None:
        """Raise `NonFiniteLoss` if anything was not a number since the last row."""
        if not torch.isfinite(self.sums).all():
            raise NonFiniteLoss("the loss or its gradient is", step, self.remedy)

    def check_state(self, step: int) -> None:
        """`check_finite`, and the same for the weights: the last update may have been the one too far."""
        self.check_finite(step)
        if not all(torch.isfinite(tensor).all() for tensor in self.state_dict().values()):
            raise NonFiniteLoss("the weights are", step, self.remedy)


class Trainer:
    """A task on its device, with optimizer and schedule, after ``step`` steps; of images that are ``streamed`` it keeps
    what is unusable."""

    def __init__(self, task: Task, fabric: Fabric, streamed: StreamingDataset | None = None) -> None:
        optimizer, self.scheduler = task.configure_optimizer()
        self.task, self.fabric, self.streamed, self.step = task, fabric, streamed, 0
        self.model, self.optimizer = fabric.setup(task, optimizer)

    def fit(
        self,
        loader: Loader,
        steps: int,
        *,
        log: Log | None = None,
        checkpoints: Checkpoints | None = None,
        stop: Callable[[int], bool] = lambda step: False,
        report: Callable[[int, int], None] = lambda step, steps: None,
    ) -> None:
        """Train from `step` to ``steps``.

        Args:
            loader: gives the batch of each step.
            steps: the step to end at.
            log: takes rows of metrics and evaluates the task in between.
            checkpoints: saves now and then, at the end, and when a signal asks to stop.
            stop: whether to end early, asked after every step and before the first.
            report: called with the steps done and in total.

        Raises:
            UserError: the loss is not finite, or a file can't be written.
            Interrupted: a signal stopped the run; its checkpoint is written.
        """
        task, on_cpu = self.task, self.fabric.device.type == "cpu"
        if log is not None:
            log.open(self.step)
        if stop(self.step):
            return
        with CORES.shared():
            for batch in loader.batches(self.step, steps):
                if on_cpu:
                    CORES.adapt()
                views = task.views(batch)
                loss = self.model(views)
                self.fabric.backward(loss)
                task.before_optimizer_step()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.scheduler.step()
                self.step = step = batch.step + 1
                if on_cpu:
                    task.check_finite(step)  # elsewhere this would wait for the device at each step
                if log is not None and log.due(step):
                    task.check_finite(step)
                    means = task.means()  # of all processes; the first one writes
                    if distributed.rank() == 0:
                        row = log.row(step, means, self.optimizer)
                        evaluated = self._evaluate(log) if log.epoch_ends(step) else {}
                        log.write(row | evaluated, histograms=bool(evaluated))
                report(step, steps)
                ended = step == steps or stop(step)
                if checkpoints is not None:
                    checkpoints.save_if_due(self, last=ended)
                    checkpoints.obey_signals(step, log.steps if log else steps)  # of the run
                if ended:
                    break

    def _evaluate(self, log: Log) -> dict[str, float]:
        try:
            return log.evaluate(self.step)
        except NonFiniteFeatures:  # of weights that are finite, or about to be found not to be
            raise NonFiniteLoss("the encoder's features are", self.step, self.task.remedy) from None

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs: plain values and tensors. All processes call it together."""
        task = self.task.state_dict()
        task["sums"] = task["sums"].clone()  # each process has its own, and will be given the first one's
        distributed.all_reduce_mean_([task["sums"]])
        unusable = list(self.streamed.unusable.copy().items()) if self.streamed else []
        return {
            "step": self.step,
            "task": task,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "unusable": dict(distributed.gather_objects(unusable)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where a `state_dict` was taken; raises whatever torch does where it does not fit."""
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = int(state["step"])
        if self.streamed:
            self.streamed.go_on(self.step, state.get("unusable", {}))
        if isinstance(self.scheduler, LambdaLR):
            self._set_rates(self.scheduler)

    def _set_rates(self, scheduler: LambdaLR) -> None:
        """The rates of this step, which in a run that is extended are not those that were saved: what is saved is
        where the old schedule ended."""
        groups = scheduler.optimizer.param_groups
        for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.step)


def create_fabric(device: str, precision: str) -> Fabric:
    """Fabric on ``device`` (cpu, cuda or mps) for all processes of this run, in ``precision`` (fp32 or bf16)."""
    _quiet_lightning()
    strategy: Any = "auto"
    if distributed.world_size() > 1:
        # No buffers are broadcast: queues are equal as they are, and batch norm's statistics are averaged.
        strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), broadcast_buffers=False)
    fabric = Fabric(
        accelerator=device,
        devices=distributed.local_world_size(),
        num_nodes=distributed.world_size() // distributed.local_world_size(),
        strategy=strategy,
        precision=PRECISION[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def _quiet_lightning() -> None:
    """Lightning's notices speak to its programmers, not to the users of a command."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning.*")
