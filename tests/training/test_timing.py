"""How long a step takes: steps with views of all sizes, each with its share of the run."""

import pytest
import torch

from mocokit.data.store import ImageSet, open_store
from mocokit.training import timing
from mocokit.training.loop import Trainer
from mocokit.training.timing import Stopwatch, step_times
from tests.tiny_runs import tiny_data
from tests.training.test_pretraining import task


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ImageSet:
    data = tiny_data(tmp_path_factory.mktemp("timing"))
    return open_store(str(data), image_size=16, workers=0).splits["train"]


def test_the_time_of_a_step_is_that_of_all_sizes(images, monkeypatch):
    pretraining = task("resnet18_narrow", 16, queue_size=16, view_size=8, view_size_end=16)

    def fit(self, loader, steps, stop):  # a step takes as many seconds as the side of its views
        stop.times = [1e9, *[float(self.task.config.view_size)] * 4]
        self.step = steps

    monkeypatch.setattr(Trainer, "fit", fit)
    assert step_times(pretraining.config, pretraining.spec, images, 1.0) == {8: 8, 12: 12, 16: 16}


def test_real_steps_of_each_size_are_taken(images, monkeypatch):
    seen: list[tuple[int, int]] = []
    pretraining = task("resnet18_narrow", 16, queue_size=16, view_size=8, view_size_end=12)
    views = type(pretraining).views

    def watched(self, batch):
        made = views(self, batch)
        seen.append((made.step, made.x1.shape[-1]))
        return made

    monkeypatch.setattr(type(pretraining), "views", watched)
    state = torch.get_rng_state()
    times = step_times(pretraining.config, pretraining.spec, images, 0.0)
    assert list(times) == [8, 12]
    assert min(times.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert [step for step, _ in seen] == list(range(len(seen)))
    assert [size for _, size in seen] == [8] * (len(seen) // 2) + [12] * (len(seen) // 2)


def test_the_first_steps_are_not_counted_and_time_is_limited(monkeypatch):
    clock = iter([0.0, 100.0, 101.0, 102.0, 103.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch("cpu", seconds=2.5)
    assert [stopwatch(step) for step in range(5)] == [False, False, False, False, True]
    assert stopwatch.mean == 1.0
    clock = iter([0.0, 100.0, 103.0, 106.0, 107.0, 108.0])  # not settled at first
    stopwatch = Stopwatch("cpu", seconds=7.5)
    assert [stopwatch(step) for step in range(6)] == [False] * 5 + [True]
    assert stopwatch.mean == pytest.approx((3 + 1 + 1) / 3)
