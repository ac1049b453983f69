"""From options and data to a complete configuration; with a time budget, the schedule that ends in time."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mocokit import distributed
from mocokit.commands.environment import pick_device
from mocokit.config import Precision, PretrainConfig
from mocokit.console import say
from mocokit.cores import usable_cores
from mocokit.data.augment import augmentations, view_sizes
from mocokit.data.statistics import channel_statistics
from mocokit.data.store import ImageSet, Store
from mocokit.data.streaming import StreamingImages
from mocokit.errors import UserError
from mocokit.evaluation.evaluator import Evaluator
from mocokit.evaluation.knn import KnnEvaluator
from mocokit.model.backbones import check_view_sizes
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.options import parse_duration
from mocokit.resolve import Facts, Resolved, resolve
from mocokit.training.compilation import forget_cuda_graphs
from mocokit.training.fit import CALIBRATION_SHARE, seconds_per_step

MONITOR_BANK, MONITOR_QUERIES = 4000, 1000  # images of the checks during training
FINAL_SHARE, LEAST_KNN_IMAGES = 0.15, 500  # of a time budget for the final figures; images they take at least
TRIAL_IMAGES, TRIAL_SECONDS = 16, 0.5  # in a step to estimate from; of the steps that are compared
PRECISION_RUN, PRECISION_STEPS = 120.0, 100  # seconds and steps of a run, at least, for a trial of precision
PRECISION_GAIN = 0.9  # bf16 is taken if its steps take less than that: it has fewer digits
# And for one of compilation, which takes about a minute for each size of views. A GPU gains more by it.
COMPILE_RUN, COMPILE_STEPS = {"cpu": 480.0, "cuda": 240.0}, 2000
COMPILE_GAIN = 0.9
GRAPHS_GAIN = 0.95  # of a compiled step: they take memory
BUDGET_USE = 0.93  # of a time budget; the rest is for what can't be foreseen
Images = ImageSet | StreamingImages


def make_plan(given: Mapping[str, Any], store: Store, images: Images, started: float) -> Resolved:
    """The complete configuration; with a time budget the schedule that ends in time.

    Args:
        given: validated values of flags and ``--config``.
        store: images to take measures on.
        images: to learn from.
        started: `time.perf_counter()` when the command began.
    """
    device = pick_device(given.get("device"))
    facts = Facts(
        name=store.name,
        images=len(images),
        image_size=store.image_size,
        longest=max(store.splits["train"].canvas),
        channels=store.channels,
        device=device,
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(),
        cpus=max(1, usable_cores() // distributed.local_world_size()),
        processes=distributed.world_size(),
    )
    resolved = _fit_view_sizes(resolve(given, facts), store)
    if device == "cpu" and "precision" in resolved.reasons and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        resolved = _fit_precision(resolved, store, images)
    if device in COMPILE_RUN and "compile" in resolved.reasons:
        resolved = _fit_compile(resolved, store, images)
    if resolved.config.time_budget is None:
        return resolved
    return _fit_budget(resolved, store, images, started)


def _fit_view_sizes(resolved: Resolved, store: Store) -> Resolved:
    """Views as large as the encoder's images, if the backbone takes no others and the user has not asked for them."""
    config, spec = resolved.config, encoder_spec(store, resolved.config)
    sizes = set(view_sizes(config.view_size, config.view_size_end)) - {config.image_size}
    if not sizes or not {"view_size", "view_size_end"} <= resolved.reasons.keys():
        return resolved
    backbone = Encoder.create(spec).backbone
    try:
        check_view_sizes(backbone, spec.backbone, spec.channels, sizes)
    except UserError:
        size, reason = config.image_size, f"{spec.backbone} takes no smaller ones"
        return resolved.derive(reason, view_size=size, view_size_end=size)
    return resolved


def _fit_precision(resolved: Resolved, store: Store, images: Images) -> Resolved:
    """On a CPU, bfloat16 if that is clearly faster for this network and the run is long enough to tell.

    Whether it is depends on the CPU and on the network's width (docs/LOG.md).
    """
    config, spec = resolved.config, encoder_spec(store, resolved.config)
    if config.time_budget is None and config.steps < PRECISION_STEPS:
        return resolved

    def step(images_a_step: int, precision: Precision, seconds: float) -> float:
        trial = dataclasses.replace(config, precision=precision, batch_size=images_a_step)
        return distributed.broadcast_object(seconds_per_step(trial, spec, images, seconds))

    batch, shares = config.batch_size, distributed.world_size()
    few = min(batch, TRIAL_IMAGES * shares)
    image = step(few, "fp32", 0.0) / few
    if _length(config, batch * image) < max(PRECISION_RUN, PRECISION_STEPS * batch * image):
        return resolved
    most = int(TRIAL_SECONDS / image)
    few = max(few, min(batch, most - most % shares))
    half, full = step(few, "bf16", TRIAL_SECONDS), step(few, "fp32", TRIAL_SECONDS)
    reason = f"{few} images: {1000 * half:.0f} ms a step in bf16, {1000 * full:.0f} ms in fp32"
    return resolved.derive(reason, precision="bf16" if half < PRECISION_GAIN * full else "fp32")


def _fit_compile(resolved: Resolved, store: Store, images: Images) -> Resolved:
    """Compiled encoders, with CUDA graphs or without, if their steps are clearly faster and so many that the wait for
    the compiler pays."""
    config, spec = resolved.config, encoder_spec(store, resolved.config)
    if config.time_budget is None and config.steps < COMPILE_STEPS:
        return resolved

    def step(compile: bool, cuda_graphs: bool = False) -> float:
        trial = dataclasses.replace(config, compile=compile, cuda_graphs=cuda_graphs)
        return distributed.broadcast_object(seconds_per_step(trial, spec, images, TRIAL_SECONDS))

    plain = step(compile=False)
    sizes = len(view_sizes(config.view_size, config.view_size_end))
    least = sizes * COMPILE_RUN[config.device]
    if _length(config, plain) < max(least, COMPILE_STEPS * plain):
        return resolved
    say(f"compiling the encoders, to see if it pays; takes a minute or two for each of {sizes} view sizes")
    compiled = step(compile=True)
    chosen = {"compile": compiled < COMPILE_GAIN * plain}
    reason = f"{1000 * compiled:.0f} ms a step compiled, {1000 * plain:.0f} ms as it is"
    if config.device == "cuda" and distributed.world_size() == 1 and "cuda_graphs" in resolved.reasons:
        try:
            graphs = step(compile=True, cuda_graphs=True)
            reason += f", {1000 * graphs:.0f} ms compiled with CUDA graphs"
        except Exception as error:  # of a network that graphs do not bear, or of too little memory
            graphs = math.inf
            reason += f"; no CUDA graphs: {(str(error) or type(error).__name__).splitlines()[0]}"
        chosen["cuda_graphs"] = graphs < min(GRAPHS_GAIN * compiled, COMPILE_GAIN * plain)
        chosen["compile"] |= chosen["cuda_graphs"]
        if not chosen["cuda_graphs"]:
            forget_cuda_graphs()
    return resolved.derive(reason, **chosen)


def _length(config: PretrainConfig, step: float) -> float:
    """Seconds that the run takes, if a step takes ``step``."""
    return parse_duration(config.time_budget) if config.time_budget else config.steps * step


@dataclass(frozen=True)
class _Timing:
    """Measured seconds: of a training step, of an image in an evaluation, of a check during training."""

    step: float
    image: float
    check: float


def _fit_budget(resolved: Resolved, store: Store, images: Images, started: float) -> Resolved:
    """Derive steps, epochs and the frequency of checks from the time that is left.

    Raises:
        UserError: the budget is too short for a single step.
    """
    config = resolved.config
    assert config.time_budget is not None
    budget = parse_duration(config.time_budget)
    timing = _time(config, store, images, CALIBRATION_SHARE * budget)
    resolved, final = _fit_evaluator(resolved, store, timing.image, FINAL_SHARE * budget)
    left = BUDGET_USE * budget - (time.perf_counter() - started) - final
    per_epoch = len(images) // config.batch_size
    checks = max(2, min(10, int(0.05 * left / timing.check)))  # the first and the last in any case
    steps = int((left - checks * timing.check) / timing.step)
    if steps < 1:
        spent = budget - left
        raise UserError(
            f"--time-budget {config.time_budget}: loading and evaluating alone take about {spent:.0f} s; "
            f"give more time"
        )
    if steps > per_epoch:
        steps -= steps % per_epoch  # whole epochs
    epochs = -(-steps // per_epoch)
    reason = f"{left:.0f} s for training at {1000 * timing.step:.0f} ms a step of {config.batch_size} images"
    resolved = resolved.derive(f"--time-budget {config.time_budget}: {reason}", steps=steps, epochs=epochs)
    if "monitor_every" in resolved.reasons:
        every = max(1, -(-epochs // (checks - 1)))
        resolved = resolved.derive(f"{timing.check:.1f} s a check", monitor_every=every)
    return resolved


def _fit_evaluator(resolved: Resolved, store: Store, image: float, seconds: float) -> tuple[Resolved, float]:
    """Keep the evaluation at the end (encoder and random initialisation) within ``seconds``, and its duration."""
    evaluator = _full_evaluator(store, resolved.config)
    if resolved.config.knn_images == 0 and "knn_images" in resolved.reasons and evaluator.knn:
        room = seconds / 2 / image - (evaluator.images_read - evaluator.knn.images_read)
        if evaluator.knn.images_read > room:
            few = max(LEAST_KNN_IMAGES, int(room / 2))
            reason = f"{1000 * image:.1f} ms an image, twice; for all of them see mocokit knn"
            resolved = resolved.derive(reason, knn_images=few)
    return resolved, 2 * final_evaluator(store, resolved.config).images_read * image


def _time(config: PretrainConfig, store: Store, images: Images, seconds: float) -> _Timing:
    """Time a few steps and an evaluation on models that are thrown away."""
    spec = encoder_spec(store, config)
    step = seconds_per_step(config, spec, images, seconds)
    encoder = Encoder.create(spec).to(config.device)
    small, check = _full_evaluator(store, config).sample(256, 256), monitor_evaluator(store, config)
    small.evaluate(encoder)
    begun = time.perf_counter()
    small.evaluate(encoder)
    image = (time.perf_counter() - begun) / small.images_read
    return _Timing(step, image, check.images_read * image)


def _full_evaluator(store: Store, config: PretrainConfig) -> Evaluator:
    knn = KnnEvaluator(store, config.knn_k, config.knn_temperature) if store.label_names else None
    return Evaluator(store.splits["train"], augmentations(config), config.seed, knn)


def monitor_evaluator(store: Store, config: PretrainConfig) -> Evaluator:
    """What is measured during training: some images."""
    return _full_evaluator(store, config).sample(MONITOR_BANK, MONITOR_QUERIES)


def final_evaluator(store: Store, config: PretrainConfig) -> Evaluator:
    """What is measured at the end: all images, unless the configuration says less."""
    evaluator = _full_evaluator(store, config)
    return evaluator.sample(config.knn_images, config.knn_images) if config.knn_images else evaluator


def encoder_spec(store: Store, config: PretrainConfig) -> EncoderSpec:
    """The encoder that a run trains."""
    mean, std = channel_statistics(store.splits["train"])
    return EncoderSpec(config.backbone, config.image_size, store.channels, mean, std, store.intensity_range)
