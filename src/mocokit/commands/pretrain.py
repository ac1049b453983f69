"""``mocokit pretrain DATA``: open the data, complete the configuration, train, measure, write."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import Tensor

from mocokit import distributed, machine
from mocokit.auto.defaults import weights_image_size
from mocokit.commands.report import report
from mocokit.commands.results import accuracy_line, next_command, record
from mocokit.config import PretrainConfig
from mocokit.console import command, mute, progress, say
from mocokit.data.image_index import Skipped
from mocokit.data.notes import count
from mocokit.data.sampler import random_subset
from mocokit.data.store import Store, TooManySkipped, write_skipped
from mocokit.deploy.encoder_file import read_encoder, save_encoder
from mocokit.deploy.loading import is_hub_reachable
from mocokit.distributed import on_first
from mocokit.errors import Interrupted, UserError, reason_of
from mocokit.evaluation.baselines import random_encoder, row_name
from mocokit.evaluation.features import extract
from mocokit.evaluation.verdict import verdict
from mocokit.files import is_utf8, write_json, write_text
from mocokit.machine import keep_freed_memory, limit_threads, versions
from mocokit.model.encoder import Encoder, encoder_spec
from mocokit.options import checked_options, documented
from mocokit.reporting.contact_sheet import thumbnails
from mocokit.reporting.images import IN_A_RUN
from mocokit.reporting.projection import is_installed
from mocokit.reporting.views import views_picture
from mocokit.resolved import Resolved, dump
from mocokit.rundir import RunDirectory
from mocokit.runs.about_data import about_data, write_sheet
from mocokit.runs.configuration import complete_config, tell_derived
from mocokit.runs.extend import extended_configuration, extended_run, take_over
from mocokit.runs.held_out import about_test, tell_any_test
from mocokit.runs.launch import end_with_launcher, launch
from mocokit.runs.measurements import final_evaluator, knn_checks, projected, quality_check
from mocokit.runs.request import Request, RunData, open_data
from mocokit.runs.resume import has_encoder, on_its_device, saved_configuration, turned, with_free_options
from mocokit.runs.start import Start
from mocokit.training.compilation import forget_cuda_graphs
from mocokit.training.log import Status, announcer, read_rows
from mocokit.training.pretraining import Pretraining, train
from mocokit.training.projector import write_projector

LARGE = 64  # pixels of a side, from which a CPU is told of known weights
NOT_MEASURED = "not measured (--no-evaluate)"
# Of a whole result.
FIGURES = ("run", "images", "steps", "wall_s", "loss", "verdict", "knn", "test", "scorecard", "config")


@documented(PretrainConfig)
def pretrain(
    data: str, *, overwrite: bool = False, extend: bool = False, started: float | None = None, **options: Any
) -> dict[str, Any]:
    """Learn an encoder from images without labels.

    Args:
        data: ``digits``, ``cifar10``, a folder, an archive, a NumPy file, Parquet or tar shards, ``hf:NAME``.
        overwrite: replace an existing run directory.
        extend: go on from the finished run in ``out`` to more ``epochs`` or ``steps``, in a new run directory beside
            it, such as ``runs/digits-400-epochs``; learning rate and momentum start again (warm restart).
        started: `time.perf_counter()` when the command began, for ``time_budget``.
        options: any field of `mocokit.config.PretrainConfig`.

    Returns:
        What the run came to, as in its ``results/pretrain.json``: run, recipe, images, skipped, epochs, steps,
        wall_s, loss, loss_over_chance (None if the queue was still filling; both if ``metrics.csv`` has lost them),
        verdict; test (what the test images are: images, split, held_out, near_duplicates) and knn (top1, top5 and the
        interval ci95), None without labels; scorecard and retrieval_ci95, as knn each of encoder, given_weights (if
        there are any), random_init, raw_pixels and colour_histogram, all four None with ``evaluate=False``; config,
        data_fingerprint, versions; extends (run and step) if it goes on from another. Of several processes that
        torchrun or SLURM started, only the first returns it; the others nothing.

    Raises:
        UserError: the data or an option is wrong, or the run directory holds another run.
        Interrupted: a signal stopped the run; the same call goes on.
    """
    started = time.perf_counter() if started is None else started
    given = checked_options(PretrainConfig, {"data": data, **options})
    if given.get("devices", 1) > 1 and not distributed.is_launched():
        return launch("pretrain", given, given["devices"], ["--overwrite"] * overwrite + ["--extend"] * extend)
    end_with_launcher()
    request = Request.of(given, extend)
    distributed.init_process_group(request.device)
    with distributed.reporting_lost_peers("its message says why; run the same command to go on from the checkpoint"):
        return _pretrain(request, overwrite, started)


def _pretrain(request: Request, overwrite: bool, started: float) -> dict[str, Any]:
    """The command in one process, or in one of several: the first one decides, writes and speaks."""
    given = request.given
    keep_freed_memory()
    limit_threads(given.get("threads"))
    if distributed.rank() > 0:
        mute()
    source = request.open_source()
    run = request.run_directory(source.name)
    origin = run  # or the run that this one extends
    if request.extend:
        run = on_first(lambda: extended_run(origin, given))
    size = on_first(lambda: None if overwrite and run is origin else origin.read_image_size())
    goes_on = run if run.config.exists() and not overwrite else origin if request.extend else None
    with distributed.local_rank_zero_first():  # it may download them
        start = Start.of(request, goes_on)
    if start and not size:
        size = weights_image_size(start.encoder.spec.image_size, request.device)
    with distributed.local_rank_zero_first(), progress("decoding images") as report:
        try:
            data = open_data(request, source, report=report, image_size=size)
        except TooManySkipped as error:
            raise _with_list(error, run) from None
    say("\n".join([data.store.summary(), *about_data(data.store, source, request.said.get("labels"))]))
    with _locked(run), machine.CORES.shared():
        return _in_directory(run, origin, request, data, start, overwrite, started)


def _in_directory(
    run: RunDirectory,
    origin: RunDirectory,
    request: Request,
    data: RunData,
    start: Start | None,
    overwrite: bool,
    started: float,
) -> dict[str, Any]:
    """What no other command may do at the same time: begin or go on, train, measure, write."""
    request = replace(request, given={**request.given, "out": str(run.path)})
    given, recipe, fingerprint = request.given, request.recipe, data.store.train_fingerprint
    saved = known = on_first(lambda: saved_configuration(run, given, recipe, fingerprint, overwrite, origin))
    if finished := on_first(lambda: run.read_result("pretrain", *FIGURES) if saved and has_encoder(run) else None):
        other = "more --epochs" if request.extend else "another --out"
        say(f"{run.path} is finished; give {other}, or --overwrite to do it again")
        is_first = distributed.rank() == 0
        distributed.destroy_process_group()
        return finished if is_first else {}
    if request.extend and not saved:
        known = on_first(lambda: extended_configuration(origin, given, recipe, fingerprint, len(data.images)))
    begun = start.encoder.spec if start else None
    resolved = on_its_device(known, given, run) if known else complete_config(request, data, started, begun)
    config = with_free_options(resolved, request)
    spec = encoder_spec(data.store, config, begun)
    initial = start.adapted(spec) if start else None
    weights = initial.backbone.state_dict() if initial else None
    # The images or the weights may have been refused, or are now: nothing is written yet.
    task = Pretraining(config, spec, resolved.restart, weights)
    parts = tell_any_test(data.store, config)
    if not saved:
        tell_derived(resolved)
        on_first(lambda: _begin(run, resolved, data, start, initial))
        on_first(lambda: write_sheet(run, data.store, spec, config.seed))
    on_first(lambda: take_over(run, resolved.extends))
    task, skipped = _train_compiled_or_not(task, weights, data, run, resolved)
    is_first = distributed.rank() == 0  # of whom the others need not wait
    distributed.destroy_process_group()
    if not is_first:
        return {}
    _write_encoder(task, data.store, run)
    _write_projector(task, data.store, run)
    figures = {"images": len(data.images), "skipped": len(skipped), "extends": asdict(resolved)["extends"]}
    test = about_test(parts, config) if parts and config.evaluate else None
    figures |= {"test": test, **_measure(task, data.store, run)}
    result = record("pretrain", str(run.path), task.config, figures, started, data.store.fingerprint, must_keep=True)
    _conclude(run, result, given["data"], task.config)
    _write_report(run, task.config)
    are_large = max(data.store.main.canvas) >= LARGE  # as stored, twice the model's at most
    if config.device == "cpu" and not config.weights and are_large and is_hub_reachable():
        say("from nothing, minutes on a CPU teach little of images this large: try --weights timm, known weights")
    return result


@contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    """Inside, no other command writes into the run directory; of several processes the first one sees to it."""
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(run.locked()))
        yield


def _with_list(error: TooManySkipped, run: RunDirectory) -> TooManySkipped:
    """The refusal that also says where all unusable images are listed: where the run would be, if nothing is there."""
    if distributed.rank() > 0 or not run.is_empty():
        return error
    try:
        write_skipped(run.skipped, error.skipped)
    except OSError:
        return error
    return TooManySkipped(f"{error}; {run.skipped} lists them", error.skipped)


def _begin(run: RunDirectory, resolved: Resolved, data: RunData, start: Start | None, initial: Encoder | None) -> None:
    """Write what identifies the run; the configuration last, for it makes the directory a run.

    An old run goes only now, when the new one is known to be possible.
    """
    try:
        if run.config.exists():
            run.clear()
        write_skipped(run.skipped, data.store.skipped)
        facts = {"fingerprint": data.store.train_fingerprint, "images": len(data.images)}
        if start and initial:
            save_encoder(initial, run.initial, dict(start.encoder.origin))
            facts["weights"] = start.fingerprint
        write_json(run.data, facts)
        write_text(run.config, dump(resolved, versions()))
        if data.store.skipped:
            say(f"{run.skipped} lists the images that can't be used")
    except OSError as error:
        raise UserError(f"--out {run.path}: can't write there ({error.strerror}); choose another --out") from None


# Train ----------------------------------------------------------------------------------------------------


def _train_compiled_or_not(
    task: Pretraining, weights: Mapping[str, Tensor] | None, data: RunData, run: RunDirectory, resolved: Resolved
) -> tuple[Pretraining, list[Skipped]]:
    """`_train`. Where a compiled step fails, the run goes on without, from its last checkpoint or from the start, which
    are random ``weights`` or these: with the task that is returned."""
    try:
        return task, _train(task, data, run, resolved)
    except (UserError, Interrupted):
        raise
    except Exception as error:
        if not task.config.compile or distributed.world_size() > 1:
            raise
        failure = reason_of(error)
    # Outside, where the memory of the step that failed is free again.
    say(f"a compiled step failed ({failure}); the run goes on without, from its last checkpoint or the start")
    forget_cuda_graphs()
    resolved = resolved.derive(f"a compiled step failed: {failure}", compile=False, cuda_graphs=False)
    config = replace(task.config, compile=False, cuda_graphs=False)
    turned(run, resolved)(config)
    task = Pretraining(config, task.spec, resolved.restart, weights)
    return task, _train(task, data, run, resolved)


def _train(task: Pretraining, data: RunData, run: RunDirectory, resolved: Resolved) -> list[Skipped]:
    """Train to the last step; all images that could not be used."""
    config, processes = task.config, distributed.world_size()
    if processes > 1:
        say(
            f"{processes} processes of {config.batch_size // processes} images each: "
            f"batch {config.batch_size}, learning rate {config.lr:g}"
        )
    formula = "2 tau log(batch) a half"
    if config.queue_size:
        full = count(task.steps_to_fill, "step", "steps")
        formula = f"log(K + 1), to compare with when the queue is full, after {full}"
    say(f"{run.path}: chance level of the loss is {task.chance_level:.3f}, {formula}")
    try:
        with run.writing(), progress("training", in_logs=False) as report:
            check, timetable = quality_check(data.store, config, run), resolved.timetable
            per_epoch, tell = len(data.images) // config.batch_size, announcer(lambda: task.config)
            status = Status(report, per_epoch, tell, timetable.ends if timetable else None)
            keep, shown = turned(run, resolved), _pictures(data.store, config)
            skipped = train(task, data.images, run, check, status.announce, status.report, timetable, keep, shown)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; run the same command to go on from {run.checkpoint}") from None
    skipped = sorted({one.name: one for one in (*skipped, *data.store.skipped)}.values())
    if distributed.rank() == 0:
        with run.writing():
            write_skipped(run.skipped, skipped)
    return skipped


def _pictures(store: Store, config: PretrainConfig) -> Callable[[], dict[str, np.ndarray]]:
    """What TensorBoard shows of the images."""
    return lambda: {"two views": views_picture(store.splits["train"], config)} if config.histograms else {}


# Measure and write ----------------------------------------------------------------------------------------


def _measure(task: Pretraining, store: Store, run: RunDirectory) -> dict[str, Any]:
    """The encoder and its baselines, on all images unless the configuration says less, or not at all."""
    config, spec = task.config, task.spec
    last = next((row for row in reversed(read_rows(run.metrics)) if row.get("step") and row.get("loss")), {})
    if not last or int(last["step"]) != config.steps:  # the checkpoint has all but these
        say(f"{run.metrics} lacks the last rows: the loss is {'that of step ' + last['step'] if last else 'left out'}")
    loss = float(last["loss"]) if last else None
    over_chance = float(last["loss"]) / task.chance_level if last.get("loss_over_chance") else None
    figures = {"run": str(run.path), "recipe": config.recipe, "epochs": config.epochs, "steps": config.steps}
    figures |= {"loss": loss, "loss_over_chance": over_chance}
    if not config.evaluate:
        return figures | {"verdict": NOT_MEASURED, "knn": None, "scorecard": None, "retrieval_ci95": None}
    evaluator = final_evaluator(store, config)
    encoder = evaluator.evaluate(Encoder(task.moco.backbone, spec))
    untrained = random_encoder(spec, config.seed, store.splits["train"], config.device)
    random_init, simple = evaluator.evaluate(untrained), evaluator.evaluate_simple(spec.image_size)
    given = evaluator.evaluate(read_encoder(run.initial).to(config.device)) if config.weights else None
    given_row = {"given_weights": given} if given else {}
    measured = {"encoder": encoder, **given_row, "random_init": random_init, **simple}
    knn = {who: metrics.knn.figures() for who, metrics in measured.items() if metrics.knn}
    if evaluator.knn:
        if line := evaluator.knn.all_vote("mocokit knn --k"):
            say(line)
        say(f"kNN of {evaluator.knn.describe()}")
    for who, accuracy in knn.items():
        say(accuracy_line(row_name(who, spec.channels), accuracy))
    return figures | {
        "verdict": verdict(
            over_chance,
            encoder,
            random_init,
            simple,
            given=given,
            largest_class=evaluator.knn.largest_class() if evaluator.knn else None,
            checks=knn_checks(run.metrics),
            channels=spec.channels,
        ),
        "knn": knn or None,
        "scorecard": {who: metrics.scores for who, metrics in measured.items()},
        "retrieval_ci95": {who: metrics.retrieval_ci95 for who, metrics in measured.items()},
    }


def _write_encoder(task: Pretraining, store: Store, run: RunDirectory) -> None:
    config, fingerprint = task.config, store.train_fingerprint
    origin: dict[str, Any] = {"recipe": config.recipe, "data_fingerprint": fingerprint, "seed": config.seed}
    origin |= {"keeps_statistics": True} if config.bn_splits == 0 else {}
    origin |= {"tiles": config.tiles} if config.tiles else {}
    with run.writing():
        save_encoder(Encoder(task.moco.backbone, task.spec), run.encoder, origin | {"versions": versions()})


def _write_projector(task: Pretraining, store: Store, run: RunDirectory) -> None:
    """Features of some training images for TensorBoard, where it is written."""
    most, folder = projected(task.config), run.tensorboard.absolute()
    if not most or not folder.exists() or not is_utf8(str(folder)):  # as for `mocokit.training.log.tensorboard`
        return
    images, spec = store.splits["train"], task.spec
    indices = random_subset(len(images), most, task.config.seed)
    rows = indices.numpy()
    columns = {"row": [str(row) for row in rows], "image": [images.names[row] for row in rows]}
    if images.labels is not None and store.label_names:
        names = (*store.label_names, "")  # the last one of -1
        columns = {"class": [names[value] for value in images.labels[rows]], **columns}
    features = extract(Encoder(task.moco.backbone, spec), images, indices)
    with run.writing():
        write_projector(run.tensorboard, features, columns, thumbnails(images, rows, spec))


def _write_report(run: RunDirectory, config: PretrainConfig) -> None:
    """The page, if it is wanted; what is wrong with it does not undo the run."""
    if not config.report or config.stream:
        return
    if not is_installed():
        say("for a page to look at: pip install 'mocokit[report]', then " + command("report", [run.path]))
        return
    say("now a page to look at (--no-report leaves it out):")
    try:
        report(str(run.path), overwrite=True, images=IN_A_RUN)
    except UserError as error:
        say(f"no report: {error}")


def _conclude(run: RunDirectory, result: dict[str, Any], data: str, config: PretrainConfig) -> None:
    say(f"verdict: {result['verdict']}")
    say(f"{run.encoder}: the encoder, after {result['wall_s']:.0f} s")
    if config.stream:
        say(f"next: {next_command('embed', str(run.path), data, asdict(config), '-o features.parquet')}")
    elif not config.evaluate:
        say(f"next: {next_command('scorecard', str(run.path), data, asdict(config))}, or with labels knn in its place")
    elif result["knn"]:
        say(f"next: {next_command('knn', str(run.path), data, asdict(config))}")
    else:
        say(f"next: {next_command('scorecard', str(run.path), data, asdict(config))}")
        say(f"or: {next_command('embed', str(run.path), data, asdict(config), '-o features.parquet')}")
        say(f"then: {command('search', ['features.parquet', '0'], '--montage nearest.png')}")  # nearest to row 0
    if result["verdict"].startswith("not learning"):
        more = f"--out {shlex.quote(str(run.path))} --epochs {2 * config.epochs} --extend"
        say(f"to go on from here: the same command with {more}")
