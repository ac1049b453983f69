"""Short runs choose the views: the best of those that are tried, few of them, and never against the user."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.auto.view_trials import choose_views
from mocokit.config import PretrainConfig
from mocokit.errors import UserError
from tests.auto.test_trials import Machine, completed

NAMES = ("jitter_strength", "gray_p", "crop_min")
DEFAULTS = {"jitter_strength": 1.0, "gray_p": 0.2, "crop_min": 0.35}

BEFORE = completed(Machine(), **DEFAULTS)


class Runs:
    """Scores by colours and by crop, which add up; and what was run."""

    def __init__(self, colours: dict[float, float], crops: dict[float, float]) -> None:
        self.colours, self.crops, self.configs = colours, crops, []

    def __call__(self, config: PretrainConfig) -> float:
        self.configs.append(config)
        return self.colours[config.jitter_strength] + self.crops[config.crop_min]


score = st.integers(0, 20).map(lambda n: n / 100)


@given(st.fixed_dictionaries({1.0: score, 0.25: score}), st.fixed_dictionaries({0.15: score, 0.35: score, 0.7: score}))
def test_the_best_of_all_by_four_runs_where_effects_add_up(colours, crops):
    runs = Runs(colours, crops)
    resolved = choose_views(BEFORE, (), 5000, runs)
    config = resolved.config
    assert colours[config.jitter_strength] == max(colours.values())
    assert crops[config.crop_min] == max(crops.values())
    assert config.gray_p == {1.0: 0.2, 0.25: 0.0}[config.jitter_strength]
    assert len(runs.configs) == 4
    if len(set(colours.values())) == len(set(crops.values())) == 1:
        assert {name: getattr(config, name) for name in NAMES} == DEFAULTS
    start = "LiDAR after 1000 steps, by jitter_strength, gray_p, crop_min: "
    assert all(resolved.reasons[name].startswith(start) for name in NAMES)


def test_runs_are_short_whole_schedules_of_the_same_kind():
    machine = Machine()
    before = completed(machine, epochs=400, warmup_steps=7, **DEFAULTS)
    before = replace(before, config=replace(before.config, compile=True))
    runs = Runs({1.0: 0.1, 0.25: 0.2}, dict.fromkeys((0.15, 0.35, 0.7), 0.0))
    after = choose_views(before, (), 5000, runs).config
    assert {config.steps for config in runs.configs} == {1000}
    short = {"steps": 1000, "warmup_steps": 0, "compile": False}
    for config in runs.configs:
        views = {name: getattr(config, name) for name in NAMES}
        assert config == replace(before.config, **short, **views)
    assert after == replace(before.config, jitter_strength=0.25, gray_p=0.0)  # the rest of the run is as it was


@pytest.mark.parametrize(
    ("fixed", "runs"), [(("jitter_strength", "gray_p"), 3), (("crop_min",), 2), (NAMES, 0), (("gray_p",), 4)]
)
def test_what_the_user_set_stays(fixed, runs):
    tried = Runs({1.0: 0.0, 0.25: 0.5}, {0.15: 0.1, 0.35: 0.0, 0.7: 0.3})
    after = choose_views(BEFORE, fixed, 1000, tried)
    assert len(tried.configs) == runs
    for config in (after.config, *tried.configs):
        assert all(getattr(config, name) == DEFAULTS[name] for name in fixed)
    assert not set(fixed) & after.reasons.keys()


def test_all_scores_are_said_best_first():
    runs = Runs({1.0: 20.0, 0.25: 30.5}, {0.15: 1.0, 0.35: 0.0, 0.7: 2.0})
    reason = choose_views(BEFORE, ("gray_p",), 5000, runs).reasons["crop_min"]
    assert reason == (
        "LiDAR after 1000 steps, by jitter_strength, crop_min: "
        "32.5 (0.25, 0.7), 31.5 (0.25, 0.15), 30.5 (0.25, 0.35), 20.0 (1, 0.35)"
    )


def test_a_run_of_few_steps_is_refused():
    with pytest.raises(UserError, match=r"runs of 20% of the steps choose, and this one has about 499; give it 500"):
        choose_views(BEFORE, (), 499, Runs({}, {}))
    assert choose_views(BEFORE, NAMES, 1, Runs({}, {})) is BEFORE
