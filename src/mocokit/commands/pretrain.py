"""``mocokit pretrain DATA``: from images to an encoder and a plain verdict on it."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mocokit import distributed
from mocokit.commands.environment import pick_device, versions
from mocokit.commands.launch import launch
from mocokit.commands.plan import Images, encoder_spec, final_evaluator, make_plan, monitor_evaluator
from mocokit.commands.results import record
from mocokit.config import FIELDS, PretrainConfig
from mocokit.console import LINE_SECONDS, mute, progress, say
from mocokit.cores import limit_threads
from mocokit.data.store import Store, TooManySkipped, open_store, write_skipped
from mocokit.data.streaming import open_streaming
from mocokit.deploy.encoder_file import save_encoder
from mocokit.errors import Interrupted, UserError
from mocokit.evaluation.baselines import random_encoder
from mocokit.evaluation.evaluator import Metrics, verdict
from mocokit.files import write_json, write_text
from mocokit.memory import keep_freed_memory
from mocokit.model.encoder import Encoder
from mocokit.options import merge, validate
from mocokit.resolve import Resolved, check_shares, differences, dump, load_recipe, run_name
from mocokit.rundir import RunDirectory
from mocokit.training.fit import fit
from mocokit.training.module import Pretraining
from mocokit.training.monitor import Measure, Row, read_metrics

CPU_SIZE_SHARE = 0.75  # of the images' side: half the work buys more than the detail (docs/LOG.md)
IMAGE_SIZE_CAP = {"cpu": 32, "cuda": 224, "mps": 128}  # of a side that is chosen for the user


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
    distributed.init_process_group(pick_device(given.get("device")))
    with distributed.reporting_lost_peers(
        "its message says why; run the same command to go on from the checkpoint"
    ):
        return _pretrain(given, overwrite, started)


def _pretrain(given: Mapping[str, Any], overwrite: bool, started: float) -> dict[str, Any]:
    """The command in one process, or in one of several: the first one decides, writes and speaks."""
    keep_freed_memory()
    limit_threads()
    first = distributed.rank() == 0
    if not first:
        mute()
    with distributed.local_rank_zero_first():
        store, images = _open_data(given)
    run = RunDirectory(Path(given.get("out") or f"runs/{run_name(store.name, given.get('recipe', 'auto'))}"))
    saved = distributed.broadcast_object(_existing(run, given, store, overwrite) if first else None)
    finished = distributed.broadcast_object(
        run.read_result("pretrain") if saved and run.encoder.exists() else None
    )
    if finished:
        say(f"{run.path} is finished; give another --out, or --overwrite to do it again")
        return finished if first else {}
    resolved = saved or distributed.broadcast_object(make_plan(given, store, images, started))
    # What does not change the result may differ from the run that is resumed.
    config = replace(
        resolved.config, **{n: v for n, v in given.items() if not FIELDS[n].metadata["identity"]}
    )
    pick_device(config.device)
    check_shares(config, distributed.world_size())
    if not saved:
        _describe(resolved)
    if distributed.world_size() > 1:
        say(
            f"{distributed.world_size()} processes of {config.batch_size // distributed.world_size()} images each: "
            f"batch {config.batch_size}, learning rate {config.lr:g}"
        )
    spec = encoder_spec(store, config)
    module = Pretraining(config, spec)  # before anything is written: the backbone may not bear the images
    if not saved and first:
        _start(run, resolved, store, len(images))
    formula = "log(K + 1)" if config.queue_size else "2 tau log(batch) a half"
    say(f"{run.path}: chance level of the loss is {module.chance_level:.3f}, {formula}")
    try:
        with run.writing():
            skipped = fit(module, images, run, _measure(store, config), announcer(config))
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; run the same command to go on from {run.checkpoint}") from None
    distributed.destroy_process_group()
    if not first:
        return {}
    encoder = Encoder(module.moco.backbone, spec)
    about = {"recipe": config.recipe, "data_fingerprint": store.fingerprint, "seed": config.seed}
    with run.writing():
        save_encoder(encoder, run.encoder, about | {"versions": versions()})
        skipped = sorted({*store.skipped, *skipped})
        write_skipped(run.skipped, skipped)
    figures = {"images": len(images), "skipped": len(skipped)} | _judge(run, config, store, module)
    result = record("pretrain", str(run.path), config, figures, started, store.fingerprint)
    _conclude(run, result, given["data"], config)
    return result


def _open_data(given: Mapping[str, Any]) -> tuple[Store, Images]:
    """The images to take measures on, and those to learn from."""
    recipe = load_recipe(given.get("recipe", "auto"))
    device = pick_device(given.get("device"))
    stream = given.get("stream", recipe.get("stream", False))
    if stream and "limit" in given:
        raise UserError("--stream and --limit exclude each other: a subset has room in the cache directory")
    options = {name: given[name] for name in ("limit", "workers") if name in given}
    options |= {name: given.get(name, FIELDS[name].default) for name in ("seed", "max_skipped")}
    with progress("decoding images") as report:
        options |= {
            "image_size": given.get("image_size", recipe.get("image_size")),
            "image_size_cap": IMAGE_SIZE_CAP[device],
            "image_size_share": CPU_SIZE_SHARE if device == "cpu" else 1.0,
            "progress": report,
        }
        try:
            store, images = _opened(given["data"], stream, options)
        except TooManySkipped as error:
            if "out" in given:
                write_skipped(RunDirectory(Path(given["out"])).skipped, error.skipped)
            raise
    say(store.summary())
    if stream:
        say(f"of {len(images):,} training images, which are read anew each epoch; the others only measure")
    return store, images


def _opened(data: str, stream: bool, options: dict[str, Any]) -> tuple[Store, Images]:
    if stream:
        return open_streaming(data, **options)
    store = open_store(data, **options)
    return store, store.splits["train"]


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


def _measure(store: Store, config: PretrainConfig) -> Measure:
    """The check during training, on some images; of the initialisation the baseline's own encoder is checked."""
    evaluator = monitor_evaluator(store, config)

    def measure(encoder: Encoder, step: int) -> dict[str, float]:
        if step == 0:
            encoder = random_encoder(encoder.spec, config.seed, store.splits["train"], config.device)
        return evaluator.evaluate(encoder).row()

    return measure


def _describe(resolved: Resolved) -> None:
    say("what is not given is derived:")
    for name, reason in resolved.reasons.items():
        if reason != "default":
            say(f"  {name} = {getattr(resolved.config, name)}  ({reason})")


def _start(run: RunDirectory, resolved: Resolved, store: Store, images: int) -> None:
    """Write what identifies the run; the configuration last, for it makes the directory a run.

    An old run goes only now, when the new one is known to be possible.
    """
    try:
        if run.config.exists():
            shutil.rmtree(run.path)
        write_skipped(run.skipped, store.skipped)
        write_json(run.data, {"fingerprint": store.fingerprint, "images": images})
        write_text(run.config, dump(resolved, versions()))
    except OSError as error:
        raise UserError(
            f"--out {run.path}: can't write there ({error.strerror}); choose another --out"
        ) from None


def announcer(config: PretrainConfig) -> Callable[[Row], None]:
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
    evaluator = final_evaluator(store, config)
    encoder = evaluator.evaluate(Encoder(module.moco.backbone, spec))
    random_init = evaluator.evaluate(random_encoder(spec, config.seed, images, config.device))
    rows = [row for row in read_metrics(run.metrics) if row["loss"]]
    loss = float(rows[-1]["loss"])
    over_chance = loss / module.chance_level
    judgement = verdict(over_chance, encoder, random_init, evaluator.knn.asked if evaluator.knn else 0)
    return {
        "run": str(run.path),
        "recipe": config.recipe,
        "epochs": config.epochs,
        "steps": config.steps,
        "loss": loss,
        "loss_over_chance": over_chance,
        "verdict": f"{judgement['state']}: {judgement['why']}",
        "knn": _knn(encoder, random_init),
        "scorecard": {"encoder": encoder.scores, "random_init": random_init.scores},
    }


def _knn(encoder: Metrics, random_init: Metrics) -> dict[str, Any] | None:
    if encoder.knn is None or random_init.knn is None:
        return None
    return {"encoder": encoder.knn._asdict(), "random_init": random_init.knn._asdict()}


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
