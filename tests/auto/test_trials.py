"""Precision, compilation, views and budgets follow what is measured, where a run is long enough to measure."""

import re
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mocokit.auto.defaults import Facts
from mocokit.auto.trials import complete
from mocokit.auto.view_sizes import view_sizes
from mocokit.config import FIELDS, PretrainConfig
from mocokit.errors import UserError
from mocokit.model.arithmetic import Pace
from mocokit.options import validate
from mocokit.resolved import Resolved
from tests.tiny_runs import TINY

FACTS = Facts(name="x", images=40, image_size=8, longest=8, channels=3, device="cpu", bf16=True, cpus=2)
GROWING = {"image_size": 16, "view_size": 8, "view_size_end": 12}


@dataclass
class Machine:
    """What a made-up machine would measure; ``step`` is asked for the seconds of a step."""

    step: Any = lambda config: 0.1
    image: float = 0.001
    check_images: int = 100
    labelled_images: int = 1000
    search: float = 0.0
    takes: bool = True
    forward: float = 0.02
    share: float = 0.5
    kept: dict[str, float] | None = None
    asked: list[PretrainConfig] = field(default_factory=list)
    shorts: list[PretrainConfig] = field(default_factory=list)

    def step_times(self, config: PretrainConfig, seconds: float) -> dict[int, float]:
        self.asked.append(config)
        return dict.fromkeys(view_sizes(config.view_size, config.view_size_end), self.step(config))

    def pace(self, config: PretrainConfig) -> Pace:
        return Pace(self.forward, self.share)

    def recall_steps(self, config: PretrainConfig) -> dict[str, float] | None:
        return self.kept

    def keep_steps(self, config: PretrainConfig, seconds: dict[str, float]) -> None:
        self.kept = seconds

    def seconds_per_image(self, config: PretrainConfig) -> float:
        return self.image

    def images_of_check(self, config: PretrainConfig) -> int:
        return self.check_images

    def images_of_final(self, config: PretrainConfig) -> int:
        return 300 + min(config.knn_images or self.labelled_images, self.labelled_images) * 2

    def seconds_of_search(self, config: PretrainConfig) -> float:
        return self.search

    def view_score(self, config: PretrainConfig) -> float:
        self.shorts.append(config)
        return config.crop_min

    def takes_views(self, config: PretrainConfig) -> bool:
        return self.takes


def completed(machine: Machine, facts: Facts = FACTS, **given: object) -> Resolved:
    options = validate({"data": "x", **TINY, **given}, FIELDS)
    if "time_budget" in options:
        options.pop("epochs", None)
    return complete(options, {}, facts, machine, time.perf_counter())


@pytest.mark.parametrize(
    ("half", "given", "expected", "why"),
    [
        (0.05, {"epochs": 400}, "bf16", "8 images: 50 ms a step in bf16, 100 ms in fp32"),
        (0.095, {"epochs": 400}, "fp32", "8 images: 95 ms a step in bf16, 100 ms in fp32"),
        (0.05, {"epochs": 4}, "bf16", "8 images: 50 ms a step in bf16, 100 ms in fp32"),  # 20 steps of 0.64 seconds
        (0.05, {"epochs": 3}, "fp32", "for cpu"),  # over in 10 seconds, before it pays
        (0.05, {"time_budget": "1m"}, "bf16", "8 images: 50 ms a step in bf16, 100 ms in fp32"),
        (0.05, {"epochs": 400, "precision": "fp32"}, "fp32", None),  # the user's word
    ],
)
def test_precision(half: float, given: dict[str, object], expected: str, why: str | None) -> None:
    machine = Machine(lambda config: half if config.precision == "bf16" else 0.1)
    resolved = completed(machine, **given)
    assert resolved.config.precision == expected
    assert resolved.reasons.get("precision") == why


def test_precision_is_compared_on_steps_that_are_more_than_calls() -> None:
    """Of 16 images calls alone take four fifths of the time, and bfloat16 gains little."""

    def step(config: PretrainConfig) -> float:
        return 0.06 + config.batch_size * (0.0006 if config.precision == "bf16" else 0.001)

    machine = Machine(step)
    facts = replace(FACTS, images=10_000, processes=1)
    config = completed(machine, facts, epochs=400, batch_size=256, compile=False)
    assert [config.batch_size for config in machine.asked] == [16, 48, 48]
    assert config.config.precision == "bf16"
    assert config.reasons["precision"] == "48 images: 89 ms a step in bf16, 108 ms in fp32"
    slow = Machine(lambda config: 10 * step(config))
    assert completed(slow, facts, epochs=400, batch_size=256, compile=False).config.precision == "fp32"
    assert [config.batch_size for config in slow.asked] == [16, 16]


def test_precision_is_tried_once_on_a_machine() -> None:
    machine = Machine(lambda config: 0.05 if config.precision == "bf16" else 0.1)
    completed(machine, epochs=400)
    machine.asked.clear()
    again = completed(machine, epochs=2)  # a short run, too
    assert not machine.asked
    assert again.config.precision == "bf16"
    assert again.reasons["precision"].endswith("as measured before")


def test_steps_are_not_tried_where_single_operations_gain_nothing() -> None:
    machine = Machine(share=0.95)
    resolved = completed(machine, epochs=100)
    assert not machine.asked
    assert resolved.config.precision == "fp32"
    assert resolved.reasons["precision"] == "single operations take 95 % of fp32's time in bf16"


def test_precision_is_not_tried_where_there_is_one() -> None:
    machine = Machine(lambda config: 0.05 if config.precision == "bf16" else 0.1)
    resolved = completed(machine, replace(FACTS, bf16=False), epochs=400)
    assert resolved.config.precision == "fp32"
    assert not any(config.precision == "bf16" for config in machine.asked)


@pytest.mark.parametrize(
    ("compiled", "given", "expected", "why"),
    [
        (0.05, {"epochs": 2000}, True, "50 ms a step compiled, 100 ms as it is"),
        (0.05, {"time_budget": "10m"}, True, "50 ms a step compiled, 100 ms as it is"),
        (0.095, {"epochs": 2000}, False, "95 ms a step compiled, 100 ms as it is"),
        (0.05, {"time_budget": "4m"}, False, "a short run"),  # over before it pays
        (0.05, GROWING | {"time_budget": "10m"}, False, "a short run"),  # two sizes, a minute each
        (0.05, GROWING | {"time_budget": "17m"}, True, "50 ms a step compiled, 100 ms as it is"),
        (0.05, {"steps": 1999}, False, "a short run"),
        (0.05, {"steps": 2500}, False, "a short run"),  # of 250 seconds
        (0.05, {"epochs": 2000, "compile": False}, False, None),  # the user's word
    ],
)
def test_compilation(compiled: float, given: dict[str, object], expected: bool, why: str | None) -> None:
    machine = Machine(lambda config: compiled if config.compile else 0.1)
    resolved = completed(machine, **{"precision": "fp32"} | given)
    assert resolved.config.compile is expected
    assert resolved.reasons.get("compile") == why


@pytest.mark.parametrize(
    ("graphs", "given", "expected", "why"),
    [
        (0.04, {}, (True, True), "40 ms a step compiled with CUDA graphs, 100 ms as it is"),
        (0.095, {}, (False, False), "95 ms a step compiled with CUDA graphs, 100 ms as it is"),
        (
            RuntimeError("overwritten\nby a later run"), {}, (True, False),
            "50 ms a step compiled, 100 ms as it is; no CUDA graphs: overwritten by a later run",
        ),
        (
            AssertionError(), {}, (True, False),
            "50 ms a step compiled, 100 ms as it is; no CUDA graphs: AssertionError",
        ),
        (0.04, {"cuda_graphs": False}, (True, False), "50 ms a step compiled, 100 ms as it is"),  # the user's word
    ],
)  # fmt: skip
def test_cuda_graphs(
    graphs: float | Exception, given: dict[str, object], expected: tuple[bool, bool], why: str
) -> None:
    """Tried in the place of the compiler alone, which is left where they fail."""
    asked = []

    def step(config: PretrainConfig) -> float:
        asked.append((config.compile, config.cuda_graphs))
        if config.cuda_graphs and isinstance(graphs, Exception):
            raise graphs
        return graphs if config.cuda_graphs else 0.05 if config.compile else 0.1

    gpu = replace(FACTS, device="cuda")
    resolved = completed(Machine(step), gpu, **{"epochs": 2000, "device": "cuda", **given})
    assert (resolved.config.compile, resolved.config.cuda_graphs) == expected
    assert resolved.reasons["compile"] == why
    assert ("cuda_graphs" in resolved.reasons) == ("cuda_graphs" not in given)
    assert ((True, False) in asked) == (expected == (True, False))  # the compiler runs once where graphs work


def test_where_nothing_compiles_the_run_goes_on() -> None:
    def step(config: PretrainConfig) -> float:
        if config.compile:
            raise RuntimeError("512 v.s. 4096")
        return 0.1

    for facts in (FACTS, replace(FACTS, device="cuda")):
        resolved = completed(Machine(step), facts, epochs=2000, device=facts.device, precision="fp32")
        assert not resolved.config.compile
        assert not resolved.config.cuda_graphs
        assert resolved.reasons["compile"].endswith("not compiled: 512 v.s. 4096")


def test_cuda_graphs_where_there_can_be_none() -> None:
    with pytest.raises(UserError, match=r"--cuda-graphs.*needs .*--device cuda"):
        completed(Machine(), compile=True, cuda_graphs=True)


@pytest.mark.parametrize(
    ("takes", "given", "expected"),
    [
        (True, {}, (16, 8, 12)),
        (False, {}, (16, 16, 16)),
        (False, {"view_size": 8}, (16, 8, 12)),  # the user's word; training says what is wrong with it
        (True, {"view_size": 16}, (16, 16, 16)),
    ],
)
def test_views_grow_if_the_backbone_takes_them(
    takes: bool, given: dict[str, object], expected: tuple[int, ...]
) -> None:
    facts = replace(FACTS, image_size=16, longest=20)
    config = completed(Machine(takes=takes), facts, **{"image_size": 16, "precision": "fp32", **given}).config
    assert (config.image_size, config.view_size, config.view_size_end) == expected


def test_a_budget_is_divided_between_steps_checks_and_final_figures() -> None:
    """100 s: 96 are used; 2 x 2,300 images at 1 ms for the end, ten checks of 0.1 s, the rest in steps of 0.1 s."""
    options = {"time_budget": "100s", "precision": "fp32", "monitor_every": None}
    resolved = completed(Machine(), **options)
    assert resolved.config.steps == pytest.approx((96 - 4.6 - 1) / 0.1, rel=0.02)
    assert resolved.config.steps % 5 == 0  # whole epochs
    assert resolved.config.epochs == resolved.config.steps // 5
    assert resolved.reasons["steps"].startswith("--time-budget 100s: 91 s for training at 100 ms a step")
    assert resolved.config.turns == f"0:{resolved.config.steps}"
    assert resolved.timetable is not None
    assert (resolved.timetable.step, resolved.timetable.check) == ({8: 0.1}, 0.1)
    assert resolved.timetable.final == pytest.approx(4.6)
    assert resolved.timetable.ends == pytest.approx(time.perf_counter() + 96, abs=2)
    searching = completed(Machine(search=10.0), **options)  # for near-duplicates, which comes after training, too
    assert searching.config.steps == pytest.approx((96 - 14.6 - 0.8) / 0.1, rel=0.02)
    assert searching.timetable is not None
    assert searching.timetable.final == pytest.approx(14.6)


def test_checks_take_a_twentieth_of_the_time_and_are_ten_at_most() -> None:
    """Of about 915 steps, 183 epochs, and 91 s: with the first and the last one, n checks are n - 1 stretches."""
    options = {"time_budget": "100s", "precision": "fp32", "monitor_every": None}
    for images, checks in ((100, 10), (1000, 4), (4000, 2)):
        config = completed(Machine(check_images=images), **options).config
        assert config.monitor_every == -(-config.epochs // (checks - 1))


@pytest.mark.parametrize(("seconds", "rough"), [(2.0, True), (0.2, False)])
def test_steps_of_the_whole_batch_are_timed_unless_four_take_a_fifth_of_the_budget(seconds: float, rough: bool) -> None:
    facts = replace(FACTS, images=400)
    machine = Machine(step=lambda config: seconds * config.batch_size / 64)
    resolved = completed(machine, facts, batch_size=64, time_budget="20s", precision="fp32", compile=False)
    assert {config.batch_size for config in machine.asked} == ({16} if rough else {16, 64})
    assert resolved.timetable is not None
    assert resolved.timetable.step == {8: seconds}


def test_a_run_that_is_repeated_takes_the_turns_of_the_first() -> None:
    machine = Machine()
    given = {"time_budget": "100s", "precision": "fp32", "turns": "0:50,20:10", "steps": 30}
    resolved = completed(machine, **given)
    assert not machine.asked
    assert resolved.timetable is None
    assert (resolved.config.steps, resolved.config.turns) == (30, "0:50,20:10")


@pytest.mark.parametrize(("turns", "words"), [("0:50,20:11", "end at step 31, --steps at 30"), ("5", "not STEP:LEFT")])
def test_turns_that_fit_nothing_are_refused(turns: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        completed(Machine(), time_budget="100s", precision="fp32", turns=turns, steps=30)


def test_the_final_figures_take_fewer_images_where_all_would_take_too_long() -> None:
    resolved = completed(Machine(labelled_images=50_000), time_budget="100s", precision="fp32")
    assert resolved.config.knn_images == 3600  # 7.5 s for each encoder, less what needs no labels
    assert "1.0 ms an image, twice" in resolved.reasons["knn_images"]
    without = completed(Machine(labelled_images=0, image=1.0), time_budget="1000s", precision="fp32")
    assert without.config.knn_images == 0


SHORT = {"time_budget": "20s", "precision": "fp32", "monitor_every": None}


def test_where_a_budget_is_short_checks_go_first_then_final_figures(capfd) -> None:
    """20 s: 19.2 are used, of which training gets a third at least."""
    one = completed(Machine(image=0.001, check_images=5000), **SHORT)  # two checks of 5 s, 2 x 2.3 s for the end
    assert one.config.monitor_every == 0
    assert one.config.knn_images == 0 or one.config.knn_images >= 500
    assert "--time-budget 20s is short for this machine: no checks during training\n" in capfd.readouterr().err
    assert one.config.steps == pytest.approx((19.2 - 2.6) / 0.1, rel=0.05)

    two = completed(Machine(image=0.01, check_images=500), **SHORT)  # 2 x 13 s for the end, with 500 images
    assert "no checks during training, final figures of 125 images" in capfd.readouterr().err
    assert (two.config.monitor_every, two.config.knn_images) == (0, 125)
    assert two.config.steps == pytest.approx((19.2 - 2 * 5.5) / 0.1, rel=0.05)


def test_what_the_user_asked_for_is_not_cut() -> None:
    config = completed(Machine(image=0.01), **SHORT | {"monitor_every": 1, "knn_images": 500}).config
    assert (config.monitor_every, config.knn_images, config.steps) == (1, 500, 1)


def test_a_budget_that_is_too_short_here_trains_one_step(capfd) -> None:
    """It is not refused: another day the machine may not be busy."""
    config = completed(Machine(image=0.01), time_budget="3s", precision="fp32").config
    assert (config.steps, config.epochs) == (1, 1)
    assert re.search(r"--time-budget 3s: loading and evaluating alone take about \d+ s here", capfd.readouterr().err)


def test_a_slow_machine_does_not_spend_its_budget_on_timing_steps() -> None:
    slow = Machine(lambda config: 0.25 * config.batch_size)  # 16 images in 4 s, the batch in 8 s
    resolved = completed(slow, replace(FACTS, processes=1), **SHORT | {"time_budget": "60s", "batch_size": 32})
    assert [config.batch_size for config in slow.asked] == [16]
    assert resolved.config.steps == int((0.96 * 60 - 4.6) / 8)


def test_views_are_chosen_where_the_user_asks_and_sets_none() -> None:
    machine = Machine(lambda config: 0.1)
    assert completed(machine, epochs=400).config.crop_min == 0.6
    assert not machine.shorts
    assert completed(machine, epochs=400, choose_views=True).config.crop_min == 0.7
    assert {config.steps for config in machine.shorts} == {400}  # a fifth of 400 epochs of 5 steps
    machine.shorts.clear()
    whole = completed(machine, time_budget="10m").config.steps
    completed(machine, time_budget="10m", choose_views=True)
    (short,) = {config.steps for config in machine.shorts}
    assert 4 * short + short / 0.2 == pytest.approx(whole, abs=15)  # four short runs and the run in the time of one
    assert completed(machine, epochs=400, choose_views=True, crop_min=0.5).config.crop_min == 0.5
    recipe = {"crop_min": 0.6}
    given = validate({"data": "x", **TINY, "epochs": 400, "choose_views": True, "recipe": "r"}, FIELDS)
    assert complete(given, recipe, FACTS, machine, time.perf_counter()).config.crop_min == 0.6


@pytest.mark.parametrize("facts", [{"processes": 2}, {"weights": "resnet18"}])
def test_views_are_chosen_by_one_process_from_random_weights(facts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--choose-views is for one process, from random weights; leave it out"):
        completed(Machine(), replace(FACTS, **facts), choose_views=True)
