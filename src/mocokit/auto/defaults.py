"""From the options that are set to a complete pretraining configuration, by rules, each value with its reason.

Values come from four places, the first that has one wins: flags, ``--config`` YAML, the recipe, `defaults`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from mocokit.auto.turns import parse_turns
from mocokit.auto.view_trials import VIEW_OPTIONS
from mocokit.config import FIELDS, PretrainConfig
from mocokit.errors import UserError
from mocokit.options import LENGTHS
from mocokit.resolved import Resolved
from mocokit.rundir import run_name

TINY = 16  # pixels of the longest side: such images have no parts that tell what they show
MIN_IMAGES = 8  # fewer leave no room for a batch and a queue without an image meeting itself
LEAST_SIZE = 16  # smaller images are enlarged: networks halve their input three times
CPU_SIZE_SHARE = 0.75  # of the images' side: half the work buys more than the detail (docs/LOG.md)
IMAGE_SIZE_CAP = {"cpu": 32, "cuda": 224, "mps": 128}  # of a side that is chosen for the user
WEIGHTS_SIZE_CAP = {"cpu": 96}  # of images for weights that were trained elsewhere
CPU_IMAGES_SEEN = 80_000  # by the narrow backbone: about two minutes on two cores
GPU_IMAGES_SEEN = 10_000_000  # 200 epochs of CIFAR-10, the schedule of the reference figures
SHORT_RATE = 0.06 / 64  # learning rate an image of the batch; eight times that of long schedules on CIFAR-10
MUON_RATE = 0.016 / math.sqrt(128)  # learning rate a root of the batch's images, as steps are of equal size
WEIGHTS_RATE = 0.01 / 64  # of a run that goes on from trained weights (docs/LOG.md, 2026-11-27)
DRIFT = 0.08  # share of the way that the key encoder moves while a key stays in the queue
MOST_QUEUE_STEPS = 256  # as in the papers


@dataclass(frozen=True)
class Facts:
    """What is known of data and machine.

    Attributes:
        name: of the data.
        images: usable training images.
        image_size: side of the encoder's images that suits them, in pixels.
        longest: the longest side among them as stored, in pixels.
        channels: of every image.
        device: cpu, cuda or mps.
        bf16: whether it computes in bfloat16.
        cpus: cores of one of the ``processes``.
        processes: that share the run.
        weights: the backbone whose trained weights the run goes on from, if it does.
    """

    name: str
    images: int
    image_size: int
    longest: int
    channels: int
    device: str
    bf16: bool
    cpus: int
    processes: int = 1
    weights: str | None = None


def image_size_chooser(device: str) -> Callable[[float], int]:
    """What chooses the side of the encoder's images from the median shorter side of the images, in pixels.

    On a CPU it is three quarters of that: more views teach more than detail.
    """
    share = CPU_SIZE_SHARE if device == "cpu" else 1.0
    return partial(choose_image_size, cap=IMAGE_SIZE_CAP[device], share=share)


def choose_image_size(median: float, *, cap: int, share: float = 1.0) -> int:
    """A multiple of 8: ``share`` of the ``median`` shorter side, at least 16 and at most ``cap`` pixels.

    Without a median (nan, since no image could be read) it is ``cap``.
    """
    return cap if math.isnan(median) else min(cap, max(LEAST_SIZE, 8 * int(share * median / 8 + 0.5)))


def warmup_of_weights(steps: int) -> int:
    """Steps of warm-up of a run that goes on from trained weights, whose projection head is new."""
    return steps // 8


def weights_image_size(own: int, device: str) -> int:
    """Side of the images for weights that were trained on images of ``own`` pixels, however large the images are: such
    networks know things at their scale. On a CPU less, as the work is quadratic in it (docs/LOG.md)."""
    return min(own, WEIGHTS_SIZE_CAP.get(device, own))


def defaults(given: Mapping[str, Any], facts: Facts, recipe: Mapping[str, Any] = MappingProxyType({})) -> Resolved:
    """Fill in what neither the user nor the recipe set; the user's values are never changed.

    Args:
        given: validated values of flags and ``--config``.
        facts: what data and machine turned out to be.
        recipe: the options that the recipe sets.

    Raises:
        UserError: too few images, or values that do not fit the data.
    """
    if any(name in given for name in LENGTHS):
        recipe = {name: value for name, value in recipe.items() if name not in LENGTHS}
    values: dict[str, Any] = dict(given)
    reasons: dict[str, str] = {}

    def default(name: str, value: Any, reason: str) -> Any:
        """Value of ``name``: the user's, else the recipe's, else the one given here."""
        if name in values:
            return values[name]
        if name in recipe:
            value, reason = recipe[name], f"recipe {given['recipe']}"
        values[name], reasons[name] = value, reason
        return value

    if facts.images < MIN_IMAGES:
        raise UserError(
            f"{given['data']}: {facts.images} usable training images; MoCo contrasts an image with many "
            f"others and needs at least {MIN_IMAGES}"
        )
    small, gpu = facts.image_size <= 64, facts.device != "cpu"
    default("out", f"runs/{run_name(facts.name, given.get('recipe', 'auto'))}", "named after data and recipe")
    default("device", facts.device, "the fastest device here")
    reason = (
        "median shorter side, at least 16"
        if gpu
        else "3/4 of the median shorter side, 16 to 32: more views beat detail"
    )
    if facts.weights:
        reason = "as the weights were trained, at most 96 on a CPU"
        default("backbone", facts.weights, "of the weights")
    size = default("image_size", facts.image_size, reason)
    grow = not gpu and facts.longest > TINY and "image_size" not in recipe
    _resolve_view_sizes(default, {**recipe, **given}.get("view_size", 0), size, grow, facts)
    _resolve_model(default, facts, small, gpu)
    _resolve_views(default, facts, small)
    # A rate that is given is meant for the papers' optimizer.
    soon = not gpu and facts.bf16 and not facts.weights and "lr" not in {**recipe, **given}
    _resolve_schedule(default, values, facts, small, gpu, soon)
    for f in FIELDS.values():
        if f.has_default:
            default(f.name, f.default, "default")
    config = PretrainConfig(**values)
    if config.batch_size > facts.images:
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the {facts.images} training images; "
            f"choose at most {facts.images}, or leave it out"
        )
    _check_turns(config)
    if config.view_size > config.view_size_end:
        raise UserError(
            f"--view-size {config.view_size} is larger than the {config.view_size_end} pixels that views have at the "
            f"end; choose at most that, or a larger --view-size-end"
        )
    if config.cuda_graphs and not (config.compile and config.device == "cuda" and facts.processes == 1):
        raise UserError("--cuda-graphs needs --compile, --device cuda and a single process; give --no-cuda-graphs")
    chosen = config.choose_views and any(name not in given and name not in recipe for name in VIEW_OPTIONS)
    if chosen and (facts.weights or facts.processes > 1):
        raise UserError("--choose-views is for one process, from random weights; leave it out, or choose before")
    check_shares(config, facts.processes)
    return Resolved(config, reasons)


def _check_turns(config: PretrainConfig) -> None:
    try:
        turns = parse_turns(config.turns)
    except ValueError:
        raise UserError(
            f"--turns {config.turns}: not STEP:LEFT,STEP:LEFT,... from 0:STEPS on, as the config.yaml of a run has it"
        ) from None
    if turns and sum(turns[-1]) != config.steps:
        raise UserError(f"--turns {config.turns}: end at step {sum(turns[-1]):,}, --steps at {config.steps:,}")


def check_shares(config: PretrainConfig, processes: int) -> None:
    """Refuse a batch that ``processes`` can't share evenly, at least two images each."""
    if config.batch_size % processes or config.batch_size < 2 * processes:
        least = 2 * processes
        near = max(least, config.batch_size // processes * processes)
        raise UserError(
            f"--batch-size {config.batch_size} can't be shared evenly by {processes} processes; "
            f"choose for example {near}, or another number of processes"
        )


def _resolve_model(default: Any, facts: Facts, small: bool, gpu: bool) -> None:
    if not gpu:
        default("backbone", "resnet18_narrow", "narrow enough to learn at useful speed on a CPU")
    elif small:
        default("backbone", "resnet18_cifar", "3x3 stem without pooling, for images up to 64 pixels")
    else:
        default("backbone", "resnet50", "the papers' backbone, for images over 64 pixels")
    each = 512 if gpu and small else 256
    # A CPU takes few steps, so they are small ones, but not so small that they are mostly calls.
    batch = each * facts.processes if gpu else 64 if facts.weights else 128
    # At least eight steps an epoch, so that the schedule stays smooth on a small set.
    batch = min(batch, max(min(8, facts.images // 2), _power_of_two(facts.images / 8)))
    batch = max(2, batch // facts.processes) * facts.processes
    shared = f", shared by {facts.processes} processes" if facts.processes > 1 else ""
    batch = default("batch_size", batch, f"for {facts.images:,} images on {facts.device}{shared}")
    momentum = default("momentum", 0.99 if small else 0.999, "small images" if small else "as in the papers")
    default("momentum_end", momentum, "constant, as in MoCo v1 and v2")
    queue, reason = _queue_size(facts.images - batch, batch, momentum)
    default("queue_size", queue, reason)
    short_way = ("linear", "runs on a CPU are short: features gain most by a short way to the loss")
    is_mlp = gpu or facts.weights or default("head_hidden", 0, "default")
    default("head", *(("mlp", "MoCo v2") if is_mlp else short_way))
    default("head_dim", 128, "as in the papers")
    if gpu or facts.processes > 1 or facts.weights:
        default("bn_splits", max(1, min(8, batch // 16)), "at least 16 images in each group")
    default("bn_splits", 1, "runs on a CPU are short: splitting costs more than it guards against")
    default("temperature", 0.1 if small else 0.2, "small images" if small else "MoCo v2")
    default("symmetric", False, "as in the papers")


def _resolve_view_sizes(default: Any, asked: int, size: int, grow: bool, facts: Facts) -> None:
    """Views that ``grow`` go from half the side of the encoder's images to five sixths of it: a view shows a part, so
    that things are as large in it as in the whole image. They end no smaller than they were ``asked`` to start. With
    trained weights they are large at once."""
    reason = "as the encoder's images"
    if grow:
        part = max(min(size, 8), _multiple_of_4(size * 5 / 6))
        end = default("view_size_end", max(part, asked), "a view shows a part")
        start = min(end, max(8, _multiple_of_4(size / 2)))
        default("view_size", *((end, "as at the end") if facts.weights else (start, "fast while little is known")))
        return
    end = default("view_size_end", max(size, asked), reason)
    default("view_size", min(size, end), reason if size <= end else "as at the end")


def _multiple_of_4(pixels: float) -> int:
    return 4 * round(pixels / 4)


def _queue_size(room: int, batch: int, momentum: float) -> tuple[int, str]:
    """K and its reason: below images - batch, and short enough that its keys are consistent.

    Over the K / batch steps that a key stays, the key encoder moves by (1 - m) K / batch of the way to the query
    encoder. The authors' CIFAR-10 demo has 8 % there. With several times that the queue's keys tell from fresh
    ones by their age alone, and little else is learned (docs/LOG.md, 2026-11-23).
    """
    steps = max(1, min(MOST_QUEUE_STEPS, round(DRIFT / max(1 - momentum, 1e-6))))
    if batch * steps > room:
        return _power_of_two(room), f"power of two below images - batch = {room:,}"
    return _power_of_two(batch * steps), f"keys of {steps} steps are consistent at momentum {momentum:g}"


def _resolve_views(default: Any, facts: Facts, small: bool) -> None:
    color = facts.channels == 3
    default("views", "v2", "MoCo v2")
    gpu = facts.device != "cpu"
    if facts.longest <= TINY:
        default("crop_min", 0.6, "tiny images have no parts that tell what they show")
    else:
        default("crop_min", 0.2 if gpu else 0.35, "as in the papers" if gpu else "milder, for a short schedule")
    default("flip_p", 0.5 if color else 0.0, "as in the papers" if color else "gray images are often signs")
    default("jitter_strength", 1.0, "as in the papers")
    default("gray_p", 0.2 if color else 0.0, "as in the papers" if color else "not a colour image")
    blur = default("blur_p", 0.0 if small else 0.5, "blur would hide what small images show" if small else "MoCo v2")
    default("blur_p2", blur, "as view 1")
    default("solarize_p2", 0.0, "MoCo v2")


def _resolve_schedule(default: Any, values: dict[str, Any], facts: Facts, small: bool, gpu: bool, soon: bool) -> None:
    batch = values["batch_size"]
    per_epoch = max(1, facts.images // batch)
    seen = GPU_IMAGES_SEEN if gpu else CPU_IMAGES_SEEN
    epochs = min(400, max(20, round(seen / facts.images)))
    if "steps" in values:
        default("epochs", math.ceil(values["steps"] / per_epoch), "from --steps")
    else:
        default("epochs", epochs, f"about {seen:,} images seen in all, within 20 to 400 epochs")
        default("steps", values["epochs"] * per_epoch, f"{values['epochs']} epochs of {per_epoch} steps")
    reason = "it learns more in a short schedule, where products in bf16 are cheap" if soon else "as in the papers"
    if default("optimizer", "muon" if soon else "sgd", reason) == "muon":
        default("lr", round(MUON_RATE * math.sqrt(batch), 6), f"{MUON_RATE:.3g} a root of the batch")
        default("weight_decay", 0.02, "Muon, which decays by the rate times that")
    rate = SHORT_RATE if not gpu else 0.06 / 512 if small else 0.03 / 256
    why = "" if gpu else ", a short schedule"
    if facts.weights:
        rate, why = WEIGHTS_RATE, ", little, from trained weights"
    default("lr", round(rate * batch, 6), f"{rate:.3g} an image of the batch{why}")
    default("weight_decay", 5e-4 if small else 1e-4, "small images" if small else "as in the papers")
    default("schedule", "cosine", "MoCo v2")
    if facts.weights:
        default("warmup_steps", warmup_of_weights(values["steps"]), "an eighth of the steps")
    default("warmup_steps", 0, "as in the papers")
    default("precision", "bf16" if gpu and facts.bf16 else "fp32", f"for {facts.device}")
    default("compile", False, "a short run")
    default("workers", max(1, facts.cpus), f"{facts.cpus} CPU cores")
    default("knn_images", 0, "all")
    if not default("evaluate", True, "default"):
        default("report", False, "--no-evaluate")
        default("monitor_every", 0, "--no-evaluate")
    default("report", True, "a page to look at")
    default("monitor_every", max(1, values["epochs"] // 10), "about ten times a run")


def _power_of_two(limit: float) -> int:
    """The largest power of two that is at most ``limit`` (at least 1)."""
    return 2 ** max(0, math.floor(math.log2(max(1.0, limit))))
