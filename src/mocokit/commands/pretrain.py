"""``mocokit pretrain DATA``: from images to an encoder and a plain verdict on it."""

import copy
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mocokit.config import (
    Facts,
    PretrainConfig,
    Resolved,
    differences,
    dump,
    load_recipe,
    merge,
    parse_duration,
    resolve,
    run_name,
    validate,
)
from mocokit.console import LINE_SECONDS, progress, say
from mocokit.data.batches import channel_statistics
from mocokit.data.store import Store, TooManySkipped, open_store, write_skipped
from mocokit.deploy.encoder import save_encoder
from mocokit.errors import Interrupted, UserError
from mocokit.evaluation.baselines import calibrate_batch_norm, random_encoder
from mocokit.evaluation.knn import KnnTest
from mocokit.evaluation.quality import Exam, Quality, verdict
from mocokit.files import write_json, write_text
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.losses import chance_level
from mocokit.rundir import RunDirectory
from mocokit.training.fit import CALIBRATION_SHARE, fit, seconds_per_step
from mocokit.training.module import Pretraining, view_set
from mocokit.training.monitor import Measure, Row, read_metrics

CPU_SIZE_SHARE = 0.5  # of the images' side: a quarter of the work buys more than the detail (docs/LOG.md)
IMAGE_SIZE_CAP = {"cpu": 32, "cuda": 224, "mps": 128}  # of a side that is chosen for the user
MONITOR_BANK, MONITOR_QUERIES = 4000, 1000  # images of the checks during training
FINAL_SHARE, LEAST_KNN_IMAGES = 0.15, 500  # of a time budget for the final figures; images they take at least
BUDGET_USE = 0.93  # of a time budget; the rest is for what can't be foreseen


def pretrain(
    data: str, *, overwrite: bool = False, started: float | None = None, **options: Any
) -> dict[str, Any]:
    """Learn an encoder from images without labels.

    Args:
        data: ``digits``, ``cifar10``, a folder or an archive of images.
        overwrite: replace an existing run directory.
        started: `time.perf_counter()` when the command began, for ``time_budget``.
        options: any field of `mocokit.config.PretrainConfig`.

    Returns:
        What the run came to, as in its ``results/pretrain.json``: run, recipe, images, skipped, epochs, steps,
        wall_s, loss, loss_over_chance, verdict, knn, scorecard.

    Raises:
        UserError: the data or an option is wrong, or the run directory holds another run.
        Interrupted: a signal stopped the run; the same call goes on.
    """
    started = time.perf_counter() if started is None else started
    given = merge(validate({"data": data, **options}), {})
    store = _open_data(given)
    run = RunDirectory(Path(given.get("out") or f"runs/{run_name(store.name, given.get('recipe', 'auto'))}"))
    saved = _existing(run, given, store, overwrite)
    if saved and (result := run.read_result("pretrain")) and run.encoder.exists():
        say(f"{run.path} is finished; give another --out, or --overwrite to do it again")
        return result
    resolved = saved or _plan(given, store, started)
    config = resolved.config
    if not saved:
        _describe(resolved)
    spec = _spec(store, config)
    module = Pretraining(config, spec)  # before anything is written: the backbone may not bear the images
    if not saved:
        _start(run, resolved, store)
    images = store.splits["train"]
    say(f"{run.path}: chance level of the loss is log(K + 1) = {chance_level(config.queue_size):.3f}")
    try:
        with run.writing():
            fit(module, images, run, _measure(store, config), _announcer(config))
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; run the same command to go on from {run.checkpoint}") from None
    encoder = Encoder(module.moco.backbone, spec)
    about = {"recipe": config.recipe, "data_fingerprint": store.fingerprint, "seed": config.seed}
    with run.writing():
        save_encoder(encoder, run.encoder, about | {"versions": versions()})
        result = _judge(run, config, store, module)
        result["wall_s"] = round(time.perf_counter() - started, 1)
        run.write_result("pretrain", result)
    _conclude(run, result, data)
    return result


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("mocokit", "torch", "torchvision", "pytorch-lightning", "timm", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def pick_device(asked: str | None) -> str:
    """The device to compute on: the one asked for, or the fastest here.

    Raises:
        UserError: this machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked is None:
        return next(name for name, available in there.items() if available)
    if not there[asked]:
        raise UserError(
            f"--device {asked}: PyTorch {torch.__version__} finds no such device here; use --device cpu"
        )
    return asked


def _open_data(given: Mapping[str, Any]) -> Store:
    recipe = load_recipe(given.get("recipe", "auto"))
    device = pick_device(given.get("device"))
    options = {name: given[name] for name in ("limit", "seed", "max_skipped", "workers") if name in given}
    with progress("decoding images") as report:
        try:
            store = open_store(
                given["data"],
                image_size=given.get("image_size", recipe.get("image_size")),
                image_size_cap=IMAGE_SIZE_CAP[device],
                image_size_share=CPU_SIZE_SHARE if device == "cpu" else 1.0,
                progress=report,
                **options,
            )
        except TooManySkipped as error:
            if "out" in given:
                write_skipped(RunDirectory(Path(given["out"])).skipped, error.skipped)
            raise
    say(data_line(store))
    return store


def data_line(store: Store) -> str:
    """What was found, in one line."""
    counts = ", ".join(f"{len(images):,} {split}" for split, images in store.splits.items())
    labels = f"{len(store.label_names)} classes" if store.label_names else "no labels"
    kind = {1: "gray", 3: "colour"}.get(store.channels, f"{store.channels}-channel")
    skipped = f", {len(store.skipped)} skipped (see skipped.csv)" if store.skipped else ""
    ignored = f", {store.ignored} outside train and test not used" if store.ignored else ""
    cached = ", from the cache" if store.from_cache else ""
    return f"{store.name}: {counts} images, {kind}, {labels}{skipped}{ignored}{cached}"


def _existing(run: RunDirectory, given: Mapping[str, Any], store: Store, overwrite: bool) -> Resolved | None:
    """The configuration of the run to resume, or None where there is none (any more)."""
    try:
        if run.is_empty() or (overwrite and run.config.exists()):
            return None
    except OSError as error:
        raise UserError(f"--out {run.path}: {error.strerror}; choose another --out") from None
    if not run.config.exists():
        raise UserError(f"--out {run.path}: exists and is not a run directory; choose another --out")
    saved = run.read_config()
    changed = differences(given, saved)
    if changed:
        raise UserError(
            f"{run.path} holds a run with other options: {'; '.join(changed)}. Give another --out, "
            f"or --overwrite to replace it"
        )
    if run.read_fingerprint() != store.fingerprint:
        raise UserError(
            f"{run.path} holds a run on other images than {given['data']} has now; give another --out, "
            f"or --overwrite to replace it"
        )
    return saved


def _plan(given: Mapping[str, Any], store: Store, started: float) -> Resolved:
    """The complete configuration; with a time budget the schedule that ends in time."""
    device = pick_device(given.get("device"))
    facts = Facts(
        name=store.name,
        images=len(store.splits["train"]),
        image_size=store.image_size,
        channels=store.channels,
        device=device,
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(),
        cpus=os.cpu_count() or 1,
    )
    resolved = resolve(given, facts)
    if resolved.config.time_budget is None:
        return resolved
    return _fit_budget(resolved, store, started)


@dataclass(frozen=True)
class _Timing:
    """Measured seconds: of a training step, of an image in an evaluation, of a check during training."""

    step: float
    image: float
    check: float


def _fit_budget(resolved: Resolved, store: Store, started: float) -> Resolved:
    """Derive steps, epochs and the frequency of checks from the time that is left.

    Raises:
        UserError: the budget is too short for a single step.
    """
    config = resolved.config
    assert config.time_budget is not None
    budget = parse_duration(config.time_budget)
    timing = _time(config, store, CALIBRATION_SHARE * budget)
    resolved, final = _fit_exam(resolved, store, timing.image, FINAL_SHARE * budget)
    left = BUDGET_USE * budget - (time.perf_counter() - started) - final
    per_epoch = len(store.splits["train"]) // config.batch_size
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


def _fit_exam(resolved: Resolved, store: Store, image: float, seconds: float) -> tuple[Resolved, float]:
    """Keep the evaluation at the end (encoder and random initialisation) within ``seconds``, and its duration."""
    exam = _exam(store, resolved.config)
    if resolved.config.knn_images == 0 and "knn_images" in resolved.reasons and exam.knn:
        room = seconds / 2 / image - (exam.images_read - exam.knn.images_read)
        if exam.knn.images_read > room:
            few = max(LEAST_KNN_IMAGES, int(room / 2))
            reason = f"{1000 * image:.1f} ms an image, twice; for all of them see mocokit knn"
            resolved = resolved.derive(reason, knn_images=few)
    if resolved.config.knn_images:
        exam = exam.sample(resolved.config.knn_images, resolved.config.knn_images)
    return resolved, 2 * exam.images_read * image


def _time(config: PretrainConfig, store: Store, seconds: float) -> _Timing:
    """Time a few steps and an evaluation on models that are thrown away."""
    spec, images = _spec(store, config), store.splits["train"]
    step = seconds_per_step(config, spec, images, seconds)
    encoder = Encoder.create(spec).to(config.device)
    exam = _exam(store, config)
    small, check = exam.sample(256, 256), exam.sample(MONITOR_BANK, MONITOR_QUERIES)
    small.take(encoder)
    begun = time.perf_counter()
    small.take(encoder)
    image = (time.perf_counter() - begun) / small.images_read
    return _Timing(step, image, check.images_read * image)


def _measure(store: Store, config: PretrainConfig) -> Measure:
    """The check during training, on some images; the initialisation gets its batch-norm statistics first."""
    exam = _exam(store, config).sample(MONITOR_BANK, MONITOR_QUERIES)

    def measure(encoder: Encoder, step: int) -> dict[str, float]:
        if step == 0:
            encoder = calibrate_batch_norm(copy.deepcopy(encoder), store.splits["train"])
        return exam.take(encoder).row()

    return measure


def _exam(store: Store, config: PretrainConfig) -> Exam:
    knn = KnnTest(store, config.knn_k, config.knn_temperature) if store.label_names else None
    return Exam(store.splits["train"], view_set(config), config.seed, knn)


def _spec(store: Store, config: PretrainConfig) -> EncoderSpec:
    mean, std = channel_statistics(store.splits["train"])
    return EncoderSpec(config.backbone, config.image_size, store.channels, mean, std, store.deep_range)


def _describe(resolved: Resolved) -> None:
    say("what is not given is derived:")
    for name, reason in resolved.reasons.items():
        if reason != "default":
            say(f"  {name} = {getattr(resolved.config, name)}  ({reason})")


def _start(run: RunDirectory, resolved: Resolved, store: Store) -> None:
    """Write what identifies the run; the configuration last, for it makes the directory a run.

    An old run goes only now, when the new one is known to be possible.
    """
    try:
        if run.config.exists():
            shutil.rmtree(run.path)
        write_skipped(run.skipped, store.skipped)
        write_json(run.data, {"fingerprint": store.fingerprint, "images": len(store.splits["train"])})
        write_text(run.config, dump(resolved, versions()))
    except OSError as error:
        raise UserError(
            f"--out {run.path}: can't write there ({error.strerror}); choose another --out"
        ) from None


def _announcer(config: PretrainConfig) -> Callable[[Row], None]:
    """Tells of every quality check, and in between of a row now and then."""
    told = 0.0

    def announce(row: Row) -> None:
        nonlocal told
        if "rankme" not in row and time.monotonic() - told < LINE_SECONDS:
            return
        told = time.monotonic()
        parts = [f"epoch {row['epoch']}/{config.epochs}", f"step {row['step']:,}/{config.steps:,}"]
        if "loss" in row:
            parts.append(f"loss {row['loss']:.3f} ({100 * row['loss_over_chance']:.0f} % of chance)")
            parts.append(f"{row['images_per_second']:.0f} images/s")
        if "knn_top1" in row:
            parts.append(f"kNN top-1 {100 * row['knn_top1']:.1f} %")
        elif "retrieval" in row:
            parts.append(f"two-view retrieval {100 * row['retrieval']:.1f} %, RankMe {row['rankme']:.1f}")
        say("  ".join(parts))

    return announce


def _judge(run: RunDirectory, config: PretrainConfig, store: Store, module: Pretraining) -> dict[str, Any]:
    """Measure the encoder and its random initialisation, on all images unless the configuration says less."""
    spec = module.spec
    images = store.splits["train"]
    exam = _exam(store, config)
    if config.knn_images:
        exam = exam.sample(config.knn_images, config.knn_images)
    encoder = exam.take(Encoder(module.moco.backbone, spec))
    random_init = exam.take(random_encoder(spec, config.seed, images, config.device))
    rows = [row for row in read_metrics(run.metrics) if row["loss"]]
    loss = float(rows[-1]["loss"])
    over_chance = loss / chance_level(config.queue_size)
    judgement = verdict(over_chance, encoder, random_init, exam.knn.asked if exam.knn else 0)
    return {
        "run": str(run.path),
        "recipe": config.recipe,
        "images": len(images),
        "skipped": len(store.skipped),
        "epochs": config.epochs,
        "steps": config.steps,
        "wall_s": 0.0,
        "loss": loss,
        "loss_over_chance": over_chance,
        "verdict": f"{judgement['state']}: {judgement['why']}",
        "knn": _knn(encoder, random_init),
        "scorecard": {"encoder": encoder.scores, "random_init": random_init.scores},
        "data_fingerprint": store.fingerprint,
        "versions": versions(),
    }


def _knn(encoder: Quality, random_init: Quality) -> dict[str, Any] | None:
    if encoder.knn is None or random_init.knn is None:
        return None
    return {"encoder": encoder.knn._asdict(), "random_init": random_init.knn._asdict()}


def _conclude(run: RunDirectory, result: dict[str, Any], data: str) -> None:
    say(f"verdict: {result['verdict']}")
    say(f"{run.encoder}: the encoder, after {result['wall_s']:.0f} s")
    if result["knn"]:
        say(f"next: mocokit knn {run.path} {data}")
    else:
        say(f"next: in Python, mocokit.load('{run.path}').embed(['image.jpg'])")
    if result["verdict"].startswith("not learning"):
        say("if it should be: train longer (--time-budget, --epochs), or more images")
