"""The loop against plain PyTorch: the same weights, in the same order of events, stopped and resumed at any step."""

import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from mocokit.data.dataset import Batch
from mocokit.errors import Interrupted
from mocokit.training.checkpoint import Checkpoints
from mocokit.training.log import Log, MetricsFile, read_rows
from mocokit.training.loop import NonFiniteLoss, Task, Trainer, create_fabric

STEPS, PER_EPOCH = 12, 4


class Line(Task):
    """A linear layer that learns to double."""

    remedy = "Do something else"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.events: list[str] = []
        self.register_buffer("sums", torch.zeros(2))

    def configure_optimizer(self):
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def views(self, batch: Batch) -> Tensor:
        self.events.append("views")
        return batch.images

    def forward(self, views: Tensor) -> Tensor:
        self.events.append("loss")
        loss = mse_loss(self.layer(views), 2 * views)
        self.sums += torch.stack([loss.detach(), torch.ones_like(loss)])
        return loss

    def before_optimizer_step(self) -> None:
        assert self.layer.weight.grad is not None
        self.events.append("step")

    def figures(self, means: list[float], count: float) -> dict[str, float]:
        return {"loss": means[0]}


class Numbers:
    """A loader whose batches are functions of the step."""

    per_epoch = PER_EPOCH

    def batches(self, start: int, stop: int):
        for step in range(start, stop):
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
            yield Batch(x, torch.zeros(5, 2), torch.arange(5), step)


def log_of(task: Line, folder: Path) -> Log:
    def evaluate(step: int) -> dict[str, float]:
        task.events.append("check")
        return {"knn_top1": float(step)}

    def loggers(step: int):
        return [MetricsFile(folder / "metrics.csv", step, ("step", "epoch", "loss", "lr", "knn_top1"))]

    announce = lambda row: task.events.append(f"row {row['step']}")  # noqa: E731
    return Log(loggers, per_epoch=PER_EPOCH, steps=STEPS, batch_size=5, every=3, evaluate=evaluate, announce=announce)


def fit(folder: Path, signal_at: int = 0, stop=lambda step: False) -> Trainer:
    task = Line()
    trainer = Trainer(task, create_fabric("cpu", "fp32"))
    checkpoints = Checkpoints(folder / "last.ckpt", 1e9, task.check_state)
    save = checkpoints.save_if_due

    def save_and_note(trainer, last):
        if trainer.step == signal_at:
            checkpoints.signal = signal.SIGTERM
        task.events.append("checkpoint?")
        save(trainer, last)

    checkpoints.save_if_due = save_and_note
    checkpoints.restore(trainer)
    trainer.fit(Numbers(), STEPS, log=log_of(task, folder), checkpoints=checkpoints, stop=stop)
    return trainer


def test_the_loop_is_plain_pytorch(tmp_path):
    trainer = fit(tmp_path)
    task = Line()
    optimizer, scheduler = task.configure_optimizer()
    for batch in Numbers().batches(0, STEPS):
        task(batch.images).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert torch.equal(trainer.task.layer.weight, task.layer.weight)
    assert trainer.step == STEPS


def test_what_happens_in_a_step_happens_in_order(tmp_path):
    events = fit(tmp_path).task.events
    one, row, check = ["views", "loss", "step"], "row {}", ["check"]
    assert events[:2] == ["check", "row 0"]
    assert events[2:10] == [*one, "checkpoint?"] * 2
    third = events[2 + 2 * 4 :]
    assert third[:5] == [*one, row.format(3), "checkpoint?"]
    assert third[5:11] == [*one, *check, row.format(4), "checkpoint?"]  # an epoch ends
    assert events[-3:] == ["check", "row 12", "checkpoint?"]


@settings(max_examples=12)
@given(st.lists(st.integers(1, STEPS - 1), min_size=1, max_size=3))
def test_stopped_and_resumed_at_any_step_ends_the_same(tmp_path_factory, stops):
    whole, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    expected = fit(whole).state_dict()
    for step in sorted(set(stops)):
        with pytest.raises(Interrupted, match=f"stopped at step {step} of {STEPS} by SIGTERM"):
            fit(folder, signal_at=step)
    found = fit(folder).state_dict()
    assert str(found) == str(expected)
    assert read_rows(folder / "metrics.csv") == read_rows(whole / "metrics.csv")


def test_a_run_that_is_to_stop_early_saves_and_stays_stopped(tmp_path):
    trainer = fit(tmp_path, stop=lambda step: step == 8)
    assert trainer.step == 8
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 8
    assert fit(tmp_path, stop=lambda step: step == 8).step == 8


def test_a_loss_that_is_no_number_names_step_and_remedy(tmp_path, monkeypatch):
    forward = Line.forward
    monkeypatch.setattr(Line, "forward", lambda self, x: forward(self, x * (torch.nan if len(self.events) > 20 else 1)))
    with pytest.raises(NonFiniteLoss, match=r"step \d+: the loss or its gradient is not finite.*Do something else$"):
        fit(tmp_path)


def test_means_start_anew():
    task = Line()
    for value in (1.0, 3.0):
        task.sums += torch.tensor([value, 1.0])
    assert task.means() == {"loss": 2.0}
    assert not task.sums.any()


def test_bfloat16_is_used_in_the_forward_pass_alone():
    seen = []

    class Watched(Line):
        def forward(self, views: Tensor) -> Tensor:
            seen.append(self.layer(views).dtype)
            return super().forward(views)

    task = Watched()
    trainer = Trainer(task, create_fabric("cpu", "bf16"))
    trainer.fit(Numbers(), 2)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in task.parameters()} == {torch.float32}
