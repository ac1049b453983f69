"""``mocokit pretrain DATA``: open the data, complete the configuration, train, measure, write."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mocokit import distributed
from mocokit.auto.defaults import Facts, check_shares, image_size_chooser
from mocokit.auto.trials import complete
from mocokit.commands.launch import launch
from mocokit.commands.measurements import RunMeasurements, check_evaluator, final_evaluator
from mocokit.commands.results import record
from mocokit.config import FIELDS, DeviceName, PretrainConfig
from mocokit.console import LINE_SECONDS, mute, progress, say
from mocokit.data.image_index import Skipped, Source
from mocokit.data.sources import open_source
from mocokit.data.store import ImageSet, Store, TooManySkipped, open_store, write_skipped
from mocokit.data.streaming import StreamingImages, open_streaming
from mocokit.deploy.encoder_file import save_encoder
from mocokit.errors import Interrupted, UserError
from mocokit.evaluation.baselines import random_encoder
from mocokit.evaluation.evaluator import Metrics
from mocokit.evaluation.splits import why_unmeasured
from mocokit.evaluation.verdict import verdict
from mocokit.files import write_json, write_text
from mocokit.machine import computes_in_bf16, keep_freed_memory, limit_threads, pick_device, usable_cores, versions
from mocokit.model.encoder import Encoder, encoder_spec
from mocokit.options import documented, merge, validate
from mocokit.recipes import load_recipe
from mocokit.resolved import Resolved, differences, dump
from mocokit.rundir import RunDirectory, run_name
from mocokit.training.log import Row, check_tracker, read_rows
from mocokit.training.pretraining import Measure, Pretraining, train


@documented(PretrainConfig)
def pretrain(data: str, *, overwrite: bool = False, started: float | None = None, **options: Any) -> dict[str, Any]:
    """Learn an encoder from images without labels.

    Args:
        data: ``digits``, ``cifar10``, a folder or an archive of images.
        overwrite: replace an existing run directory.
        started: `time.perf_counter()` when the command began, for ``time_budget``.
        options: any field of `mocokit.config.PretrainConfig`.

    Returns:
        What the run came to, as in its ``results/pretrain.json``: run, recipe, images, skipped, epochs, steps,
        wall_s, loss, loss_over_chance, verdict, knn, scorecard, config, data_fingerprint, versions. Of several
        processes that torchrun or SLURM started, only the first returns it; the others return nothing.

    Raises:
        UserError: the data or an option is wrong, or the run directory holds another run.
        Interrupted: a signal stopped the run; the same call goes on.
    """
    started = time.perf_counter() if started is None else started
    given = merge(validate({"data": data, **options}, FIELDS), {})
    if given.get("devices", 1) > 1 and not distributed.is_launched():
        return launch("pretrain", given, given["devices"], overwrite)
    request = Request.of(given)
    distributed.init_process_group(request.device)
    with distributed.reporting_lost_peers("its message says why; run the same command to go on from the checkpoint"):
        return _pretrain(request, overwrite, started)


@dataclass(frozen=True)
class Request:
    """What the user asks for: the options that are ``given``, those of the ``recipe``, and the device."""

    given: Mapping[str, Any]
    recipe: Mapping[str, Any]
    device: DeviceName

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Request":
        """From validated options; raises `UserError` if there is no such recipe, device or experiment tracker."""
        check_tracker(given.get("logger"))
        return cls(given, load_recipe(given.get("recipe", "auto")), pick_device(given.get("device")))


def _pretrain(request: Request, overwrite: bool, started: float) -> dict[str, Any]:
    """The command in one process, or in one of several: the first one decides, writes and speaks."""
    given = request.given
    keep_freed_memory()
    limit_threads()
    if distributed.rank() > 0:
        mute()
    with distributed.local_rank_zero_first(), progress("decoding images") as report:
        data = open_data(request, report=report)
    say(data.store.summary())
    if data.store.label_names and (reason := why_unmeasured(data.store)):
        say(f"kNN is not measured: {reason}")
    run = RunDirectory(Path(given.get("out") or f"runs/{run_name(data.name, given.get('recipe', 'auto'))}"))
    saved = _on_first(lambda: _saved(run, given, data.store, overwrite))
    if finished := _on_first(lambda: run.read_result("pretrain") if saved and run.encoder.exists() else None):
        say(f"{run.path} is finished; give another --out, or --overwrite to do it again")
        return finished if distributed.rank() == 0 else {}
    resolved = saved or complete_config(request, data, started)
    config = _with_free_options(resolved, given)
    task = Pretraining(config, encoder_spec(data.store, config))  # may refuse the images: nothing is written yet
    if not saved:
        _describe(resolved)
        _on_first(lambda: _begin(run, resolved, data))
    skipped = _train(task, data, run)
    if distributed.rank() > 0:
        return {}
    _write_encoder(task, data.store, run)
    figures = {"images": len(data.images), "skipped": len(skipped)} | _measure(task, data.store, run)
    result = record("pretrain", str(run.path), config, figures, started, data.store.fingerprint)
    _conclude(run, result, given["data"], config)
    return result


def _on_first(decide: Callable[[], Any]) -> Any:
    """What the first process decides, in all of them."""
    return distributed.broadcast_object(decide() if distributed.rank() == 0 else None)


# Open the data --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunData:
    """What a run learns from: ``images``, stored or streamed, and the ``store`` of those it is evaluated on."""

    store: Store
    images: ImageSet | StreamingImages

    @property
    def name(self) -> str:
        """Short name of the data."""
        return self.store.name


def open_data(
    request: Request,
    source: Source | None = None,
    cache: Path | None = None,
    report: Callable[[int, int], None] | None = None,
) -> RunData:
    """Decode the images unless the cache has them.

    Args:
        request: names the data.
        source: the images, if they are at hand.
        cache: where decoded images are kept, if not in the usual cache directory.
        report: called with the images done and in total.

    Raises:
        UserError, TooManySkipped: the data can't be opened, or too many images can't be used.
    """
    given, recipe = request.given, request.recipe
    options = {name: given[name] for name in ("limit", "workers") if name in given}
    options |= {name: given.get(name, FIELDS[name].default) for name in ("seed", "max_skipped")}
    size = given.get("image_size", recipe.get("image_size"))
    options |= {
        "image_size": size or image_size_chooser(request.device),
        "progress": report,
        "cache": cache,
        "to_train": True,
    }
    source = source or open_source(
        given["data"], *(given.get(name, FIELDS[name].default) for name in ("follow_links", "max_pixels"))
    )
    try:
        if not given.get("stream", recipe.get("stream", False)):
            store = open_store(source, **options)
            return RunData(store, store.splits["train"])
        if "limit" in given:
            raise UserError("--stream and --limit exclude each other: a subset has room in the cache directory")
        store, images = open_streaming(source, **options)
        say(f"{len(images):,} training images are read anew each epoch; a sample of them is stored to measure on")
        return RunData(store, images)
    except TooManySkipped as error:
        if "out" in given:
            write_skipped(RunDirectory(Path(given["out"])).skipped, error.skipped)
        raise


# Complete the configuration -------------------------------------------------------------------------------


def complete_config(request: Request, data: RunData, started: float) -> Resolved:
    """What the user did not say, decided in the first process for all; see `mocokit.auto`."""
    store = data.store
    facts = Facts(
        name=data.name,
        images=len(data.images),
        image_size=store.image_size,
        longest=max(store.splits["train"].canvas),
        channels=store.channels,
        device=request.device,
        bf16=computes_in_bf16(request.device),
        cpus=max(1, usable_cores() // distributed.local_world_size()),
        processes=distributed.world_size(),
    )
    resolved = complete(request.given, request.recipe, facts, RunMeasurements(store, data.images), started)
    return distributed.broadcast_object(resolved)


def _with_free_options(resolved: Resolved, given: Mapping[str, Any]) -> PretrainConfig:
    """The configuration; what does not change the result may differ from the run that is resumed."""
    free = {name: value for name, value in given.items() if not FIELDS[name].identity}
    config = replace(resolved.config, **free)
    pick_device(config.device)
    check_shares(config, distributed.world_size())
    return config


def _saved(run: RunDirectory, given: Mapping[str, Any], store: Store, overwrite: bool) -> Resolved | None:
    """The configuration of the run to resume, or None where there is none (any more)."""
    if run.is_empty() or (overwrite and run.config.exists()):
        return None
    if not run.config.exists():
        raise UserError(f"--out {run.path}: exists and is not a run directory; choose another --out")
    saved = run.read_config()
    if changed := differences(given, saved):
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


def _describe(resolved: Resolved) -> None:
    say("what is not given is derived:")
    for name, reason in resolved.reasons.items():
        if reason != "default":
            say(f"  {name} = {getattr(resolved.config, name)}  ({reason})")


def _begin(run: RunDirectory, resolved: Resolved, data: RunData) -> None:
    """Write what identifies the run; the configuration last, for it makes the directory a run.

    An old run goes only now, when the new one is known to be possible.
    """
    try:
        if run.config.exists():
            shutil.rmtree(run.path)
        write_skipped(run.skipped, data.store.skipped)
        write_json(run.data, {"fingerprint": data.store.fingerprint, "images": len(data.images)})
        write_text(run.config, dump(resolved, versions()))
    except OSError as error:
        raise UserError(f"--out {run.path}: can't write there ({error.strerror}); choose another --out") from None


# Train ----------------------------------------------------------------------------------------------------


def _train(task: Pretraining, data: RunData, run: RunDirectory) -> list[Skipped]:
    """Train to the last step; all images that could not be used."""
    config, processes = task.config, distributed.world_size()
    if processes > 1:
        say(
            f"{processes} processes of {config.batch_size // processes} images each: "
            f"batch {config.batch_size}, learning rate {config.lr:g}"
        )
    formula = "log(K + 1)" if config.queue_size else "2 tau log(batch) a half"
    say(f"{run.path}: chance level of the loss is {task.chance_level:.3f}, {formula}")
    try:
        with run.writing(), progress("training", in_logs=False) as report:
            check = _quality_check(data.store, config)
            skipped = train(task, data.images, run, check, announcer(config), report)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; run the same command to go on from {run.checkpoint}") from None
    distributed.destroy_process_group()
    skipped = sorted({*data.store.skipped, *skipped})
    if distributed.rank() == 0:
        with run.writing():
            write_skipped(run.skipped, skipped)
    return skipped


def _quality_check(store: Store, config: PretrainConfig) -> Measure:
    """The check during training, on some images; of the initialisation the baseline's own encoder is checked."""
    evaluator = check_evaluator(store, config)

    def check(encoder: Encoder, step: int) -> dict[str, float]:
        if step == 0:
            encoder = random_encoder(encoder.spec, config.seed, store.splits["train"], config.device)
        return evaluator.evaluate(encoder).row()

    return check


def announcer(config: PretrainConfig) -> Callable[[Row], None]:
    """Prints every quality check, and in between a row now and then."""
    announced = 0.0

    def announce(row: Row) -> None:
        nonlocal announced
        if "rankme" not in row and time.monotonic() - announced < LINE_SECONDS:
            return
        announced = time.monotonic()
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


# Measure and write ----------------------------------------------------------------------------------------


def _measure(task: Pretraining, store: Store, run: RunDirectory) -> dict[str, Any]:
    """The encoder and its random initialisation, on all images unless the configuration says less."""
    config, spec = task.config, task.spec
    evaluator = final_evaluator(store, config)
    encoder = evaluator.evaluate(Encoder(task.moco.backbone, spec))
    untrained = random_encoder(spec, config.seed, store.splits["train"], config.device)
    random_init = evaluator.evaluate(untrained)
    loss = float([row for row in read_rows(run.metrics) if row["loss"]][-1]["loss"])
    over_chance = loss / task.chance_level
    queries = evaluator.knn.num_queries if evaluator.knn else 0
    return {
        "run": str(run.path),
        "recipe": config.recipe,
        "epochs": config.epochs,
        "steps": config.steps,
        "loss": loss,
        "loss_over_chance": over_chance,
        "verdict": verdict(over_chance, encoder, random_init, queries),
        "knn": _knn(encoder, random_init),
        "scorecard": {"encoder": encoder.scores, "random_init": random_init.scores},
    }


def _knn(encoder: Metrics, random_init: Metrics) -> dict[str, Any] | None:
    if encoder.knn is None or random_init.knn is None:
        return None
    return {"encoder": encoder.knn._asdict(), "random_init": random_init.knn._asdict()}


def _write_encoder(task: Pretraining, store: Store, run: RunDirectory) -> None:
    origin = {"recipe": task.config.recipe, "data_fingerprint": store.fingerprint, "seed": task.config.seed}
    with run.writing():
        save_encoder(Encoder(task.moco.backbone, task.spec), run.encoder, origin | {"versions": versions()})


def _conclude(run: RunDirectory, result: dict[str, Any], data: str, config: PretrainConfig) -> None:
    say(f"verdict: {result['verdict']}")
    say(f"{run.encoder}: the encoder, after {result['wall_s']:.0f} s")
    if config.stream:
        say(f"next: mocokit embed {run.path} {data} -o features.parquet")
    elif result["knn"]:
        say(f"next: mocokit knn {run.path} {data}")
    else:
        say(f"next: in Python, mocokit.load('{run.path}').embed(['image.jpg'])")
    if result["verdict"].startswith("not learning"):
        say("if it should be: train longer (--time-budget, --epochs), or more images")
