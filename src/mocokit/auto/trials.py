"""What only a measurement on this machine can choose: size of views, precision, compilation, and with a time budget the
schedule that ends in time. How long a step takes is a function that `complete` is handed."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from mocokit.auto.defaults import Facts, defaults, warmup_of_weights
from mocokit.auto.turns import format_turns
from mocokit.auto.view_sizes import mean_over_views, view_sizes
from mocokit.auto.view_trials import RUNS, SHARE, choose_views
from mocokit.config import Precision, PretrainConfig
from mocokit.console import say
from mocokit.errors import reason_of
from mocokit.options import parse_duration
from mocokit.resolved import Resolved, Timetable

TRIAL_IMAGES, TRIAL_SECONDS = 16, 0.5  # in a step that is compared, at least; of the steps
TRIAL_STEP = 0.3  # seconds of such a step, or that of the whole batch: in shorter ones calls cost more than arithmetic
PRECISION_RUN = 10.0  # seconds of a run, at least, for a trial of precision
STEP_FORWARDS = 4  # forward passes that take as long as a step: query forward and backward, key forward
PRECISION_GAIN = 0.9  # bf16 is taken if its steps take less than that: it has fewer digits
# And for one of compilation, which takes about a minute for each size of views. A GPU gains more by it.
COMPILE_RUN, COMPILE_STEPS = {"cpu": 480.0, "cuda": 240.0}, 2000
COMPILE_GAIN = 0.9
CALIBRATION_SHARE = 0.02  # of a time budget for timing steps; in pretraining the clock corrects what it tells
CALIBRATION_STEPS, MOST_CALIBRATION_SHARE = 4, 0.2  # that it takes with views of each size; share it may come to
FINAL_SHARE, LEAST_KNN_IMAGES = 0.15, 500  # of a time budget for the final figures; images they take at least
TRAINING_SHARE = 1 / 3  # of a budget after loading, at least, before checks and figures are cut
REPORT_SHARE = 0.1  # of a time budget for the page at the end
FEWEST_KNN_IMAGES = 32  # in the final figures of a budget that is too short for more
BUDGET_USE = 0.96  # of a time budget; the rest is for what can't be foreseen


class Pace(NamedTuple):
    """How fast a network is: ``seconds`` that an image takes forward in float32, and the ``share`` of float32's time
    that its largest convolution and matrix product take in bfloat16."""

    seconds: float
    share: float


class Measurements(Protocol):
    """What `complete` may measure, on the images and the machine of the run to come."""

    def pace(self, config: PretrainConfig) -> Pace:
        """Of the network's operations, in a tenth of a second."""

    def recall_steps(self, config: PretrainConfig) -> dict[str, float] | None:
        """What `keep_steps` kept of a run of this kind on this machine: seconds of a step by precision, and ``images``,
        how many it had."""

    def keep_steps(self, config: PretrainConfig, seconds: dict[str, float]) -> None:
        """Remember what a trial of precision measured."""

    def step_times(self, config: PretrainConfig, seconds: float) -> dict[int, float]:
        """Seconds of a training step by size of views, from about ``seconds`` of steps."""

    def seconds_per_image(self, config: PretrainConfig) -> float:
        """Time of an image in an evaluation."""

    def images_of_check(self, config: PretrainConfig) -> int:
        """How many times an image goes through the encoder in a quality check during training."""

    def images_of_final(self, config: PretrainConfig) -> int:
        """The same for the final figures of one encoder."""

    def seconds_of_search(self, config: PretrainConfig) -> float:
        """That near-duplicates of test images are looked for at the end."""

    def seconds_of_report(self, image: float) -> float:
        """That the page at the end takes, where an image takes ``image`` seconds in an evaluation."""

    def view_score(self, config: PretrainConfig) -> float:
        """LiDAR of training images, the higher the better, after the run of ``config``."""

    def takes_views(self, config: PretrainConfig) -> bool:
        """Whether the backbone takes views of all these sizes."""


def complete(
    given: Mapping[str, Any], recipe: Mapping[str, Any], facts: Facts, measure: Measurements, started: float
) -> Resolved:
    """The complete configuration; with a time budget the schedule that ends in time.

    Args:
        given: validated values of flags and ``--config``.
        recipe: those of the recipe.
        facts: of data and machine.
        measure: on the run to come.
        started: `time.perf_counter()` when the command began.

    Raises:
        UserError: values that do not fit the data.
    """
    resolved = _fit_view_sizes(defaults(given, facts, recipe), measure)
    if facts.device == "cpu" and facts.bf16 and "precision" in resolved.reasons:
        resolved = _choose_precision(resolved, facts, measure)
    if resolved.config.choose_views:
        steps = resolved.config.steps
        if resolved.config.time_budget:  # which holds the short runs, too
            steps = int(_fit_budget(resolved, facts, measure, started).config.steps / (1 + RUNS * SHARE))
        resolved = choose_views(resolved, {*resolved.given, *recipe}, steps, measure.view_score)
    if facts.device in COMPILE_RUN and "compile" in resolved.reasons:
        resolved = _choose_compilation(resolved, facts, measure)
    if resolved.config.time_budget is not None and resolved.config.turns is None:
        resolved = _fit_budget(resolved, facts, measure, started)
    return resolved


def _fit_view_sizes(resolved: Resolved, measure: Measurements) -> Resolved:
    """Views as large as the encoder's images, if the backbone takes no others and the user has not asked for them."""
    config = resolved.config
    if not {"view_size", "view_size_end"} <= resolved.reasons.keys() or measure.takes_views(config):
        return resolved
    reason = f"{config.backbone} takes no smaller ones"
    return resolved.derive(reason, view_size=config.image_size, view_size_end=config.image_size)


def _choose_precision(resolved: Resolved, facts: Facts, measure: Measurements) -> Resolved:
    """On a CPU, bfloat16 if that is clearly faster for this network, which depends on the CPU and on the network's
    width (docs/LOG.md). Steps are tried only if single operations gain, once on each machine."""
    config, shares = resolved.config, facts.processes

    def decided(times: Mapping[str, float], when: str = "") -> Resolved:
        half, full = times["bf16"], times["fp32"]
        took = f"{1000 * half:.0f} ms a step in bf16, {1000 * full:.0f} ms in fp32"
        reason = f"{times['images']:.0f} images: {took}{when}"
        return resolved.derive(reason, precision="bf16" if half < PRECISION_GAIN * full else "fp32")

    if known := measure.recall_steps(config):
        return decided(known, ", as measured before")
    pace = measure.pace(config)
    if _length(config, STEP_FORWARDS * pace.seconds * config.batch_size / shares) < PRECISION_RUN:
        return resolved
    if pace.share > PRECISION_GAIN:
        reason = f"single operations take {100 * pace.share:.0f} % of fp32's time in bf16"
        return resolved.derive(reason, precision="fp32")

    def step(precision: Precision, images: int) -> float:
        trial = dataclasses.replace(config, precision=precision, batch_size=images)
        return mean_over_views(measure.step_times(trial, TRIAL_SECONDS), trial)

    images = min(config.batch_size, TRIAL_IMAGES * shares)
    full = step("fp32", images)
    if (more := min(config.batch_size, images * int(TRIAL_STEP / full))) > images:
        images, full = more, step("fp32", more)
    times = {"images": float(images), "fp32": full, "bf16": step("bf16", images)}
    measure.keep_steps(config, times)
    return decided(times)


def _choose_compilation(resolved: Resolved, facts: Facts, measure: Measurements) -> Resolved:
    """Compiled encoders, with CUDA graphs or without, if their steps are clearly faster and so many that the wait for
    the compiler pays."""
    config = resolved.config
    sizes = len(view_sizes(config.view_size, config.view_size_end))
    least = sizes * COMPILE_RUN[config.device]
    if parse_duration(config.time_budget) < least if config.time_budget else config.steps < COMPILE_STEPS:
        return resolved

    def step(compile: bool, cuda_graphs: bool = False) -> float:
        trial = dataclasses.replace(config, compile=compile, cuda_graphs=cuda_graphs)
        return mean_over_views(measure.step_times(trial, TRIAL_SECONDS), trial)

    plain = step(compile=False)
    if _length(config, plain) < max(least, COMPILE_STEPS * plain):
        return resolved
    say(f"compiling the encoders, to see if it pays; takes a minute or two for each of {sizes} view sizes")
    as_it_is = f"{1000 * plain:.0f} ms as it is"
    if config.device == "cuda" and facts.processes == 1 and "cuda_graphs" in resolved.reasons:
        try:  # in the place of compilation alone, which would take the compiler's time once more
            graphs = step(compile=True, cuda_graphs=True)
            reason = f"{1000 * graphs:.0f} ms a step compiled with CUDA graphs, {as_it_is}"
            pays = graphs < COMPILE_GAIN * plain
            return resolved.derive(reason, compile=pays, cuda_graphs=pays)
        except Exception as error:  # of a network that can't be recorded, or of too little memory
            as_it_is += f"; no CUDA graphs: {reason_of(error)}"
    try:
        compiled = step(compile=True)
    except Exception as error:
        return resolved.derive(f"{as_it_is}; not compiled: {reason_of(error)}", compile=False)
    reason = f"{1000 * compiled:.0f} ms a step compiled, {as_it_is}"
    return resolved.derive(reason, compile=compiled < COMPILE_GAIN * plain)


def _length(config: PretrainConfig, step: float) -> float:
    """Seconds that the run takes, if a step takes ``step``."""
    return parse_duration(config.time_budget) if config.time_budget else config.steps * step


def _fit_budget(resolved: Resolved, facts: Facts, measure: Measurements, started: float) -> Resolved:
    """Derive steps, epochs and the frequency of checks from the time that is left."""
    config = resolved.config
    assert config.time_budget is not None
    budget = parse_duration(config.time_budget)
    times = _time_steps(config, facts, measure, budget)
    step = mean_over_views(times, config)
    image = measure.seconds_per_image(config)
    check = image * measure.images_of_check(config)
    resolved = _fit_final_figures(resolved, measure, image, FINAL_SHARE * budget)
    page = measure.seconds_of_report(image) if config.report else 0.0
    if page > REPORT_SHARE * budget and "report" in resolved.reasons:
        resolved = resolved.derive(f"it takes about {page:.0f} s; mocokit report writes it later", report=False)
        page = 0.0
    search = measure.seconds_of_search(config)
    left = BUDGET_USE * budget - page - search - (time.perf_counter() - started)
    resolved, left, checks = _divide(resolved, measure, image, check, left)
    per_epoch = facts.images // config.batch_size
    steps = int((left - checks * check) / step)
    if steps < 1:  # not refused, for the machine may be busy just now
        steps = 1
        say(
            f"--time-budget {config.time_budget}: loading and evaluating alone take about {budget - left:.0f} s here, "
            f"so one step is trained; give more time, or --steps instead; images once decoded are quick to load"
        )
    if steps > per_epoch:
        steps -= steps % per_epoch  # whole epochs
    epochs = -(-steps // per_epoch)
    reason = f"{left:.0f} s for training at {1000 * step:.0f} ms a step of {config.batch_size} images"
    resolved = resolved.derive(f"--time-budget {config.time_budget}: {reason}", steps=steps, epochs=epochs)
    resolved = resolved.derive("as the clock will have it", turns=format_turns([(0, steps)]))
    final = 2 * image * measure.images_of_final(resolved.config) + search + page
    timetable = Timetable(started + BUDGET_USE * budget, times, check, final)
    if facts.weights and "warmup_steps" in resolved.reasons:
        resolved = resolved.derive("an eighth of the steps", warmup_steps=warmup_of_weights(steps))
    if checks and "monitor_every" in resolved.reasons:
        every = max(1, -(-epochs // (checks - 1)))
        resolved = resolved.derive(f"{check:.1f} s a check", monitor_every=every)
    return dataclasses.replace(resolved, timetable=timetable)


def _time_steps(config: PretrainConfig, facts: Facts, measure: Measurements, budget: float) -> dict[int, float]:
    """Seconds of a step by size of views; from small ones where those of the whole batch would use the budget up."""
    few = min(config.batch_size, TRIAL_IMAGES * facts.processes)
    if facts.device == "cpu" and not config.compile:
        small = measure.step_times(dataclasses.replace(config, batch_size=few), 0.0)
        rough = {size: seconds * config.batch_size / few for size, seconds in small.items()}
        if CALIBRATION_STEPS * sum(rough.values()) > MOST_CALIBRATION_SHARE * budget:
            return rough
    return measure.step_times(config, CALIBRATION_SHARE * budget)


def _divide(
    resolved: Resolved, measure: Measurements, image: float, check: float, seconds: float
) -> tuple[Resolved, float, int]:
    """The seconds that remain beside the final figures, and the number of checks among them.

    Where these leave too little to train, there are no checks, then smaller final figures, unless the user set them.
    """
    config, enough, dropped = resolved.config, TRAINING_SHARE * seconds, []
    left = seconds - 2 * image * measure.images_of_final(config)
    checks = max(2, min(10, int(0.05 * left / check))) if config.monitor_every else 0  # the first and last in any case
    if left - checks * check < enough and "monitor_every" in resolved.reasons:
        checks = 0
        resolved = resolved.derive("the time budget is short", monitor_every=0)
        dropped.append("no checks during training")
    most = config.knn_images or 2 * LEAST_KNN_IMAGES
    while left - checks * check < enough and most > FEWEST_KNN_IMAGES and "knn_images" in resolved.reasons:
        most = max(FEWEST_KNN_IMAGES, most // 2)
        fewer = resolved.derive("the time budget is short", knn_images=most)
        cut = seconds - 2 * image * measure.images_of_final(fewer.config)
        if cut > left:
            resolved, left = fewer, cut
    if resolved.config.knn_images != config.knn_images:
        dropped.append(f"final figures of {resolved.config.knn_images} images")
    if dropped:
        say(f"--time-budget {config.time_budget} is short for this machine: {', '.join(dropped)}")
    return resolved, left, checks


def _fit_final_figures(resolved: Resolved, measure: Measurements, image: float, seconds: float) -> Resolved:
    """Keep the final figures, of encoder and random initialisation, within ``seconds`` by using fewer images."""
    config = resolved.config
    if config.knn_images or "knn_images" not in resolved.reasons:
        return resolved
    least = measure.images_of_final(dataclasses.replace(config, knn_images=LEAST_KNN_IMAGES))
    room = seconds / 2 / image
    if measure.images_of_final(config) <= max(room, least):  # without labels there is no kNN
        return resolved
    reason = f"{1000 * image:.1f} ms an image, twice; for all of them see mocokit knn"
    return resolved.derive(reason, knn_images=LEAST_KNN_IMAGES + int(max(room - least, 0) / 2))
