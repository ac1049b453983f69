"""How many steps are left by the clock: simulated machines whose pace changes end in time."""

from dataclasses import replace

import pytest

from mocokit.auto.turns import parse_turns
from mocokit.data.view_params import view_size_at
from mocokit.resolved import Timetable
from mocokit.training import clock
from mocokit.training.clock import DECISIONS, stretch_end, turn
from tests.training.test_optim import configuration


def test_stretches_end_with_epochs_where_these_are_short():
    config = configuration(steps=1000)
    assert stretch_end(0, 7, config) == 49
    assert stretch_end(49, 7, config) == 98
    assert stretch_end(50, 7, config) == 98  # of a run that was stopped in between
    assert stretch_end(0, 600, config) == 50  # an epoch is more than a twentieth
    assert stretch_end(980, 7, config) == 1000
    assert stretch_end(0, 5, configuration(steps=3)) == 1


class Simulation:
    """A run of ``budget`` seconds on a machine of which ``pace`` says how slow it is at a time."""

    def __init__(self, monkeypatch, budget, pace, sizes=(16, 16), check=0.0, final=0.0, per_epoch=10):
        self.now, self.pace, self.turned = 0.0, pace, 0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)
        step = {size: 0.001 * size**2 for size in (16, 20, 24)}
        self.table = Timetable(ends=budget, step=step, check=check, final=final)
        mean = sum(step[view_size_at(i, 1000, *sizes)] for i in range(1000)) / 1000
        steps = int((budget - final) / mean)
        self.config = configuration(
            steps=steps, turns=f"0:{steps}", view_size=sizes[0], view_size_end=sizes[1], monitor_every=0
        )
        self.per_epoch, at = per_epoch, 0
        while at < self.config.steps:
            end, seconds = stretch_end(at, per_epoch, self.config), 0.0
            for i in range(at, end):
                turns = parse_turns(self.config.turns)
                place = clock.position(i, turns) / turns[0][1]
                took = step[view_size_at(place, 1, *sizes)] * pace(self.now)
                seconds, self.now = seconds + took, self.now + took
            if end < self.config.steps:
                before = self.config
                self.config = turn(self.config, per_epoch, self.table, at, end, seconds)
                self.turned += self.config != before
            at = end
        self.now += final * pace(self.now)


@pytest.mark.parametrize("sizes", [(16, 16), (16, 24)])
@pytest.mark.parametrize(
    "pace",
    [
        lambda now: 1.5,  # measured in a better moment
        lambda now: 0.7,
        lambda now: 1.0 if now < 150 else 1.5,
        lambda now: 1.5 if now < 150 else 1.0,
        lambda now: 1.0 if now < 200 else 2.0,
    ],
)
def test_a_run_ends_in_time_on_a_machine_whose_pace_changes(monkeypatch, pace, sizes):
    run = Simulation(monkeypatch, 300.0, pace, sizes, final=20.0)
    assert 0.95 * 300 <= run.now <= 1.05 * 300
    assert 1 <= run.turned <= DECISIONS + 10


@pytest.mark.parametrize("sizes", [(16, 16), (16, 24)])
def test_a_steady_machine_has_no_turns(monkeypatch, sizes):
    run = Simulation(monkeypatch, 300.0, lambda now: 1.0 + 0.01 * (int(now) % 2), sizes, final=20.0)
    assert run.turned == 0
    assert 0.97 * 300 <= run.now <= 1.03 * 300


def test_checks_to_come_have_their_time():
    config = configuration(steps=100, turns="0:100", view_size=16, view_size_end=16, monitor_every=1)
    table = Timetable(ends=clock.time.perf_counter() + 90, step={16: 1.0}, check=4.0, final=10.0)
    after = turn(config, 10, table, 0, 20, 20.0)  # eight checks and the end take 42 of 90 seconds
    assert after.steps == pytest.approx(20 + 48, abs=1)
    assert after.epochs == -(-after.steps // 10)
    assert after.turns == f"0:100,20:{after.steps - 20}"
    assert turn(replace(config, monitor_every=0), 10, table, 0, 20, 20.0) == replace(config, monitor_every=0)


def test_a_run_that_is_late_ends_with_the_next_step():
    config = configuration(steps=100, turns="0:100", view_size=16, view_size_end=16, monitor_every=0)
    table = Timetable(ends=clock.time.perf_counter() - 5, step={16: 1.0}, check=0, final=10.0)
    assert turn(config, 10, table, 0, 20, 20.0).steps == 21
