"""A run with a time budget follows the clock: at the ends of epochs it is decided anew how many steps are left.

What was decided is in the configuration (`mocokit.auto.turns`), which a resumed or repeated run follows.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mocokit.auto.turns import format_turns, parse_turns, position
from mocokit.auto.view_sizes import view_size_at
from mocokit.config import PretrainConfig
from mocokit.console import say
from mocokit.resolved import Timetable

FIRST_STEPS = {False: 1, True: 3}  # by --cuda-graphs, of each size of views; never counted: they compile and record
DECISIONS = 20  # of a run, at most
TOLERANCE = 0.02  # share of a run's steps that is not worth a turn
WORTH_TELLING = 0.2  # and share from which on it is told
PLACES = 100  # of the rest of a run, at which it is asked for the size of views


class Stopwatch:
    """The ``seconds`` of the steps after step ``since``; it stands still in pauses and while checkpoints are written.

    Args:
        first: steps with views of each size that are not counted, nor any before them.
        writing: the seconds that went into checkpoints so far.
    """

    def __init__(self, first: int, writing: Callable[[], float]) -> None:
        self._first, self._writing = first, writing
        self._seen: Counter[int] = Counter()  # steps with views of each size
        self._paused = 0.0
        self.start(0)

    def _now(self) -> float:
        return time.perf_counter() - self._paused - self._writing()

    @property
    def seconds(self) -> float:
        """Since `start`, without pauses."""
        return self._now() - self._begun

    def start(self, step: int) -> None:
        """Count anew from after ``step``."""
        self.since, self._begun = step, self._now()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, it stands still."""
        asked = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - asked

    def step_done(self, step: int, size: int) -> None:
        """After ``step`` steps, the last one with views of ``size`` pixels."""
        self._seen[size] += 1
        if self._seen[size] <= self._first:
            self.start(step)


def stretch_end(step: int, per_epoch: int, config: PretrainConfig) -> int:
    """The step at which to look at the clock again: at the end of an epoch, where these are short."""
    stretch = max(1, config.steps // DECISIONS)
    if per_epoch <= stretch:
        stretch -= stretch % per_epoch
        step -= step % per_epoch
    return min(config.steps, step + stretch)


def check_due(step: int, config: PretrainConfig, per_epoch: int) -> bool:
    """Whether quality is checked after ``step``, where an epoch ends: every so many epochs and at the end, but not
    shortly before that, as a schedule that follows the clock would have it."""
    every, left = config.monitor_every * per_epoch, config.steps - step
    return every > 0 and (left == 0 or (step % every == 0 and (step == 0 or 2 * left >= every)))


def turn(
    config: PretrainConfig, per_epoch: int, timetable: Timetable, since: int, step: int, seconds: float
) -> PretrainConfig:
    """The configuration with as many steps as there is time for, the same if that makes little difference.

    Args:
        config: so far; has turns.
        per_epoch: steps of an epoch.
        timetable: of the run.
        since, step, seconds: of the steps that were done last, without quality checks, checkpoints and first steps.
    """
    turns = parse_turns(config.turns)
    planned, left = turns[0][1], config.steps - step

    def cost(done: float) -> float:
        return timetable.step[view_size_at(done, 1, config.view_size, config.view_size_end)]

    expected = sum(cost(position(s, turns) / planned) for s in range(since, step))
    pace = seconds / expected  # how many times as long as planned everything takes now
    ends = [*range(step - step % per_epoch + per_epoch, config.steps, per_epoch), config.steps]
    checks = sum(check_due(end, config, per_epoch) for end in ends)
    rest = timetable.ends - time.perf_counter() - pace * (checks * timetable.check + timetable.final)
    done = position(step, turns) / planned
    mean = sum(cost(done + (1 - done) * (i + 0.5) / PLACES) for i in range(PLACES)) / PLACES
    fits = max(1, int(rest / (pace * mean)))
    if abs(fits - left) <= TOLERANCE * config.steps:
        return config
    if abs(fits - left) > WORTH_TELLING * config.steps:
        say(f"step {step:,}: steps take {pace:.2f} times as long as planned; {fits:,} are left in place of {left:,}")
    steps = step + fits
    new = format_turns([*turns, (step, fits)])
    return dataclasses.replace(config, steps=steps, epochs=-(-steps // per_epoch), turns=new)
