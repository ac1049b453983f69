"""How many steps are left by the clock: simulated machines whose pace changes end in time."""

import math
import os
import signal
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open

import mocokit
from mocokit.auto.turns import parse_turns, position
from mocokit.auto.view_sizes import view_size_at
from mocokit.errors import Interrupted
from mocokit.model.digest import digest as digest_of
from mocokit.resolved import Timetable
from mocokit.training import checkpoint as training_checkpoint
from mocokit.training import clock, pretraining
from mocokit.training import log as training_log
from mocokit.training.clock import DECISIONS, Stopwatch, check_due, stretch_end, turn
from mocokit.training.log import read_rows
from tests.tiny_runs import TINY, coloured_data
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
                place = position(i, turns) / turns[0][1]
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


@pytest.mark.parametrize(("pace", "told"), [(1.1, False), (1.5, True)])
def test_only_a_large_turn_is_told(monkeypatch, capfd, pace, told):
    assert Simulation(monkeypatch, 300.0, lambda now: pace, final=20.0).turned
    assert (f"steps take {pace:.2f} times as long as planned" in capfd.readouterr().err) == told


def test_checks_to_come_have_their_time():
    config = configuration(steps=100, turns="0:100", view_size=16, view_size_end=16, monitor_every=1)
    table = Timetable(ends=clock.time.perf_counter() + 90, step={16: 1.0}, check=4.0, final=10.0)
    after = turn(config, 10, table, 0, 20, 20.0)  # eight checks and the end take 42 of 90 seconds
    assert after.steps == pytest.approx(20 + 48, abs=1)
    assert after.epochs == -(-after.steps // 10)
    assert after.turns == f"0:100,20:{after.steps - 20}"
    assert turn(replace(config, monitor_every=0), 10, table, 0, 20, 20.0) == replace(config, monitor_every=0)


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (100, 3, [0, 30, 60, 100]),  # at 90 it would be looked at again at once
        (100, 4, [0, 40, 80, 100]),
        (107, 10, [0, 107]),
        (40, 10, [0, 40]),
        (40, 1, [0, 10, 20, 30, 40]),
        (40, 0, []),
    ],
)
def test_quality_is_checked_now_and_then_and_at_the_end(steps, every, expected):
    config = configuration(steps=steps, turns=None, view_size=16, view_size_end=16, monitor_every=every)
    ends = [*range(0, steps, 10), steps]
    assert [end for end in ends if check_due(end, config, 10)] == expected


def test_a_run_that_is_late_ends_with_the_next_step():
    config = configuration(steps=100, turns="0:100", view_size=16, view_size_end=16, monitor_every=0)
    table = Timetable(ends=clock.time.perf_counter() - 5, step={16: 1.0}, check=0, final=10.0)
    assert turn(config, 10, table, 0, 20, 20.0).steps == 21


def test_a_stopwatch_stands_still_in_pauses_and_begins_anew_after_first_steps(monkeypatch):
    now, written = [0.0], [0.0]
    monkeypatch.setattr(clock, "time", Mock(perf_counter=lambda: now[0]))
    watch = Stopwatch(2, lambda: written[0])
    for step, size, took in [(1, 8, 50), (2, 8, 20), (3, 8, 1), (4, 8, 1)]:
        now[0] += took
        watch.step_done(step, size)
    assert (watch.since, watch.seconds) == (2, 2.0)
    with watch.paused():
        now[0] += 100
    now[0], written[0] = now[0] + 7, 7.0
    assert (watch.since, watch.seconds) == (2, 2.0)
    now[0] += 1
    watch.step_done(5, 16)
    assert (watch.since, watch.seconds) == (5, 0.0)
    watch.start(9)
    now[0] += 3
    assert (watch.since, watch.seconds) == (9, 3.0)


def test_pace_is_of_steps_that_neither_compile_nor_check_nor_save(tmp_path, monkeypatch):
    """On a clock by which a step takes a second, the first with views of a size 80, a check 100 and a checkpoint 7."""
    now, seen, looks = [0.0], set(), []
    options = {name: value for name, value in TINY.items() if name not in ("epochs", "steps")}
    options |= {"log_every": 1, "precision": "fp32", "compile": False, "checkpoint_every": 0.0}
    options |= {"image_size": 16, "view_size": 8, "view_size_end": 16}
    forward = pretraining.Pretraining.forward

    def slow(task, views):
        size = views.x1.shape[-1]
        now[0] += 1 if size in seen else 80
        seen.add(size)
        return forward(task, views)

    def check(*_):
        now[0] += 100
        return {}

    def digest(state):
        now[0] += 7
        return digest_of(state)

    def played(resolved, *rest):
        table = Timetable(ends=0, step={8: 1.0, 12: 1.0, 16: 1.0}, check=0, final=0)
        return replace(resolved.derive("played", steps=18, epochs=2, turns="0:18"), timetable=table)

    def look(config, per_epoch, timetable, since, step, seconds):
        looks.append((since, step, seconds))
        return config

    for module in (clock, training_log, training_checkpoint):
        monkeypatch.setattr(module, "time", Mock(perf_counter=lambda: now[0], monotonic=lambda: now[0]))
    monkeypatch.setattr(pretraining.Pretraining, "forward", slow)
    monkeypatch.setattr(pretraining, "turn", look)
    monkeypatch.setattr(training_checkpoint, "digest", digest)
    monkeypatch.setattr(pretraining, "stretch_end", lambda step, *_: min(step + 3, 18))
    monkeypatch.setattr("mocokit.auto.trials._fit_budget", played)
    monkeypatch.setattr("mocokit.commands.pretrain.quality_check", lambda *_: check)
    run = tmp_path / "run"
    mocokit.pretrain(str(coloured_data(tmp_path / "data")), out=str(run), time_budget="1h", evaluate=False, **options)
    assert seen == {8, 12, 16}
    # Views change after steps 5 and 14: stretches that end with a first step say nothing of the pace.
    assert looks == [(1, 3, 2.0), (6, 9, 3.0), (9, 12, 3.0)]
    speeds = [float(row["images_per_second"]) for row in read_rows(run / "metrics.csv", "loss")]
    assert sorted(set(speeds)) == [TINY["batch_size"] / 80, TINY["batch_size"] / 8]  # saving counts, checks do not
    assert speeds.count(1.0) == 15


def weights(run):
    with safe_open(run / "encoder.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_a_run_that_followed_the_clock_is_resumed_and_repeated_exactly(tmp_path, monkeypatch):
    """The clock's decisions are played: after 4 steps of 12 there is time for 6 more."""
    data = coloured_data(tmp_path / "data")
    options = {name: value for name, value in TINY.items() if name not in ("epochs", "steps")}
    options |= {
        "log_every": 1,
        "precision": "fp32",
        "compile": False,
        "view_size": 8,
        "view_size_end": 16,
        "image_size": 16,
    }

    def played(resolved, *rest):
        table = Timetable(ends=0, step={8: 1.0, 12: 1.0, 16: 1.0}, check=0, final=0)
        return replace(resolved.derive("played", steps=12, epochs=4, turns="0:12"), timetable=table)

    def decide(stops=False):
        def decision(config, per_epoch, timetable, since, step, seconds):
            if step == 8 and stops:
                os.kill(os.getpid(), signal.SIGTERM)
            return replace(config, steps=10, turns="0:12,4:6") if step == 4 else config

        return decision

    with monkeypatch.context() as patch:
        patch.setattr("mocokit.auto.trials._fit_budget", played)
        patch.setattr("mocokit.training.pretraining.stretch_end", lambda step, *_: min(step + 4 - step % 4, 10))
        patch.setattr("mocokit.training.pretraining.turn", decide())
        result = mocokit.pretrain(str(data), out=str(tmp_path / "run"), time_budget="1h", **options)
        patch.setattr("mocokit.training.pretraining.turn", decide(stops=True))
        stopped = {"out": str(tmp_path / "stopped"), "time_budget": "1h", **options}
        with pytest.raises(Interrupted, match="stopped at step 9 of 10 by"):
            mocokit.pretrain(str(data), **stopped)
        mocokit.pretrain(str(data), **stopped)
    assert result["steps"] == 10
    assert result["config"]["turns"] == "0:12,4:6"
    repeated = {"turns": "0:12,4:6", "steps": 10, "out": str(tmp_path / "repeated"), **options}
    mocokit.pretrain(str(data), **repeated)
    mocokit.pretrain(str(data), **repeated | {"turns": None, "out": str(tmp_path / "other")})
    expected = weights(tmp_path / "run")
    for name, equal in (("stopped", True), ("repeated", True), ("other", False)):
        found = weights(tmp_path / name)
        assert all(torch.equal(found[key], expected[key]) for key in expected) is equal, name
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    steps = [[int(row["step"]) for row in read_rows(tmp_path / name / "metrics.csv")] for name in ("run", "stopped")]
    assert steps == [list(range(11))] * 2
    factors = [float(row["lr"]) / result["config"]["lr"] for row in rows[1:]]
    places = [position(step, parse_turns("0:12,4:6")) for step in range(1, 11)]
    assert factors == pytest.approx([(1 + math.cos(math.pi * place / 12)) / 2 for place in places], abs=1e-6)
