"""``mocokit study DATA``: subsets of labelled images, several seeds, every method; and when MoCo pays."""

import csv
import io
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mocokit.auto.view_sizes import mean_over_views
from mocokit.commands.results import record
from mocokit.config import PretrainConfig, StudyConfig, deciding
from mocokit.console import progress, say
from mocokit.data.notes import count
from mocokit.data.store import ImageSet
from mocokit.errors import UserError
from mocokit.evaluation.splits import NotSplit, split_labelled
from mocokit.files import is_utf8, read_json, write_json, write_text
from mocokit.machine import limit_threads, versions
from mocokit.options import config_of, documented, flag, parse_duration, parse_yaml
from mocokit.rundir import RunDirectory
from mocokit.runs.configuration import complete_config
from mocokit.runs.measurements import RunMeasurements
from mocokit.runs.request import Request, RunData, open_data
from mocokit.studies.engine import Resources, State, has_ray, parallel, run_trials
from mocokit.studies.plan import IDENTITY, Plan, make_plan
from mocokit.studies.plots import has_matplotlib, write_plots
from mocokit.studies.results import answers, by_setting, compare, read_rows, write_answer, write_tables
from mocokit.studies.trial import REQUEST, RESULT, is_done

TABLE, TRIALS = "labels.csv", "trials"
READING = (*deciding("reading"), "train", "test", "tiles")  # how commands read the images
TIMED_SECONDS = 5.0


@documented(StudyConfig)
def study(data: str, **options: Any) -> dict[str, Any]:
    """Find out when MoCo pays on labelled images: subsets of them, long-tailed ones too, several seeds, every method.

    Test images are the data's, or are held out once, and are in no subset. What is in ``out`` is kept: with more sizes,
    seeds, labels or methods, trials are added.

    Args:
        data: labelled images, as for `mocokit.pretrain`.
        options: any other field of `mocokit.config.StudyConfig`.

    Returns:
        ``out``, the directory with ``study.yaml``, ``trials.csv``, ``summary.csv``, ``answer.md`` and the plots;
        ``trials``, how many are ``done`` and the last line of each that ``failed`` twice, by name; ``answer``, the
        sentences; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no labels in the data, a subset does not fit, a wrong option, or ``out`` holds another study.
        Interrupted: the user stopped it; the same call goes on.
    """
    started = time.perf_counter()
    config = config_of(StudyConfig, data=data, **options)
    limit_threads(config.trial_cpus)
    opened, table, request = _open(config)
    out = Path(config.out or f"studies/{opened.name}")
    home = RunDirectory(out)
    with home.locked(), home.writing():
        out.mkdir(parents=True, exist_ok=True)  # or why it can't be would be lost with the lock
        saved = _saved(home, opened.store.fingerprint)
        if not saved or not (out / TABLE).exists():
            write_text(out / TABLE, table)
        laid = open_data(replace(request, given={**request.given, "labels": str(out / TABLE), "labels_columns": None}))
        images, names = laid.images, laid.store.label_names
        assert isinstance(images, ImageSet)
        assert images.labels is not None
        assert names is not None
        plan = make_plan(config, images.labels, names)
        example, seconds = _example(config, request, laid, plan)
        config = replace(
            config, out=str(out), device=request.device, steps=None if config.time_budget else example.steps
        )
        _check(saved, config, out)
        common = _common(config, out, example)
        write_text(out / "study.yaml", _description(config, plan, opened.store.fingerprint, saved))  # what is a study
        directories = _write_requests(out, plan, common, saved)
        missing = [path for path in directories if not is_done(path, read_json(path / REQUEST))]
        resources = Resources(config.trial_cpus, config.trial_gpus, config.ray_address)
        _announce(out, plan, missing, seconds, resources)
        failed = run_trials(missing, resources, _Teller(seconds, parallel(resources)))
        figures = _write(out, opened.name, directories, failed, plan, len(names))
    return record("study", None, config, {"out": str(out), **figures}, started, opened.store.fingerprint)


def _open(config: StudyConfig) -> tuple[RunData, str, Request]:
    """The images; a table of which of them train and test, and their labels; and what trials will ask for.

    Validation images train, too: each subset has its own.
    """
    names = (*READING, "data", "recipe", "backbone", "test_share", "split_by", "device", "labels_columns")
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    given |= {"labels": config.labels_file} if config.labels_file else {}
    request = Request.of(given)
    with progress("decoding images") as report:
        opened = open_data(request, report=report)
    say(opened.store.summary())
    try:
        parts = split_labelled(opened.store, seed=0, test_share=config.test_share)
    except NotSplit as why:
        raise UserError(f"{config.data}: a study needs labels: {why}") from None
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "label", "split"))
    for split, images in opened.store.splits.items():
        held = set(parts.test.indices.tolist()) if parts.test.images is images else set()
        labels = images.labels if images.labels is not None else np.full(len(images), -1)
        for row, (name, label) in enumerate(zip(images.names, labels.tolist(), strict=True)):
            if label >= 0 and is_utf8(name) and (row in held or split != "test"):
                writer.writerow((name, parts.names[label], "test" if row in held else "train"))
    return opened, text.getvalue(), request


def _example(config: StudyConfig, request: Request, laid: RunData, plan: Plan) -> tuple[PretrainConfig, float]:
    """The configuration of a pretraining on all images, and about how many seconds a trial takes, from the times of
    a few steps and of encoding some images, measured here."""
    given = {**request.given, "out": "", "workers": 0, "report": False} | (
        {"steps": config.steps} if config.steps else {}
    )
    example = complete_config(replace(request, given=given), laid, time.perf_counter()).config
    measurements = RunMeasurements(laid.store, laid.images)
    times = measurements.step_times(example, TIMED_SECONDS)
    budget = parse_duration(config.time_budget) if config.time_budget else None
    pretraining = budget or (example.steps or 0) * mean_over_views(times, example)
    labels, methods = max(len(trial.labels) for trial in plan.trials), set(plan.methods)
    trainings = labels * len({"from-scratch", "moco-finetuned"} & methods)
    images = sum(map(len, laid.store.splits.values()))
    measuring = measurements.seconds_per_image(example) * images * 2 * (2 + labels)
    runs = bool({"moco", "moco-finetuned"} & methods) + ("moco-continued" in methods)
    return example, runs * pretraining + trainings * config.finetune_steps * max(times.values()) + measuring


def _saved(home: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """``study.yaml`` of the study that is added to; empty if there is none."""
    path = home.path / "study.yaml"
    if not path.exists():
        others = {TABLE, home.lock.name, home.owner.name}
        if any(entry.name not in others and entry.suffix != ".tmp" for entry in home.path.iterdir()):
            raise UserError(f"--out {home.path}: exists and holds no study; choose another --out")
        return {}
    saved = parse_yaml(path.read_text(encoding="utf-8"), str(path), "; restore it, or give another --out")
    if saved.get("data_fingerprint") != fingerprint:
        raise UserError(f"{home.path} holds a study of other images or labels; give another --out")
    return saved


def _check(saved: dict[str, Any], config: StudyConfig, out: Path) -> None:
    """Refuse to add trials that could not be compared with those that are there."""
    changed = [
        f"{flag(n)} {saved['options'][n]}" for n in IDENTITY if saved and saved["options"][n] != getattr(config, n)
    ]
    if changed:
        raise UserError(f"{out} holds a study with {'; '.join(changed)}; give the same, or another --out")


def _common(config: StudyConfig, out: Path, example: PretrainConfig) -> dict[str, Any]:
    """What every trial is told."""
    common = {name: value for name in READING if (value := getattr(config, name)) is not None}
    common |= {"labels": str((out / TABLE).absolute()), "device": config.device, "threads": config.trial_cpus}
    length = {"time_budget": config.time_budget} if config.time_budget else {"steps": example.steps}
    backbone = {"backbone": config.backbone} if config.backbone else {}
    return {
        "data": config.data,
        "common": common,
        "pretraining": {"recipe": config.recipe, **backbone, **length, "threads": config.trial_cpus},
        "finetune_steps": config.finetune_steps,
        "weights": config.weights,
    }


def _write_requests(out: Path, plan: Plan, common: dict[str, Any], saved: dict[str, Any]) -> list[Path]:
    """A directory for each trial with what it is to do; and those of earlier calls."""
    directories = []
    for trial in plan.trials:
        directories.append(out / TRIALS / trial.cell.name)
        write_json(directories[-1] / REQUEST, trial.request(common | {"methods": list(plan.methods)}))
    earlier = [out / TRIALS / name for name in saved.get("trials", [])]
    return list(dict.fromkeys([*directories, *(path for path in earlier if (path / REQUEST).exists())]))


def _description(config: StudyConfig, plan: Plan, fingerprint: str, saved: dict[str, Any]) -> str:
    trials = dict.fromkeys([*saved.get("trials", []), *(trial.cell.name for trial in plan.trials)])
    whole = {
        "options": asdict(config),
        "methods": list(plan.methods),
        "trials": list(trials),
        "notes": list(plan.notes),
    }
    return yaml.safe_dump(whole | {"data_fingerprint": fingerprint, "versions": versions()}, sort_keys=False)


def _announce(out: Path, plan: Plan, missing: list[Path], seconds: float, resources: Resources) -> None:
    for line in plan.lines():
        say(line)
    at_once = parallel(resources)
    whole = f"about {len(missing) * seconds / at_once / 60:,.1f} min in all" if missing else "nothing"
    ray = "" if has_ray() else "; pip install 'mocokit[study]' runs them side by side"
    here = " on this machine alone" * bool(resources.ray_address)
    each = f"about {seconds / 60:,.1f} min each, {at_once} at once{here}"
    say(f"{out}: {count(len(missing), 'trial', 'trials')} to do, {each}: {whole}{ray}")


class _Teller:
    """Tells how far the trials are; after the first one by the time that they took."""

    def __init__(self, seconds: float, at_once: int) -> None:
        self.seconds, self.at_once, self.started = seconds, at_once, time.monotonic()

    def __call__(self, state: State) -> None:
        ended = state.done + len(state.failed)
        left = (state.total - ended) * self.seconds / self.at_once
        if ended:
            left = (time.monotonic() - self.started) / ended * (state.total - ended)
        counts = f"{state.done} of {state.total} trials done, {state.running} running, {len(state.failed)} failed"
        say(f"{counts}, about {left / 60:,.1f} min left")


def _write(
    out: Path, name: str, directories: list[Path], failed: dict[Path, str], plan: Plan, classes: int
) -> dict[str, Any]:
    """Tables, plots and the answer; also told."""
    rows = read_rows(directories)
    figures = by_setting(rows)
    comparisons = compare(figures)
    sentences = answers(figures, classes)
    notes = [*plan.notes, *(f"{path.name} failed twice and is left out: {line}" for path, line in failed.items())]
    write_tables(out, rows, comparisons)
    write_answer(out, f"When does MoCo pay on {name}?", sentences, comparisons, notes)
    if has_matplotlib():
        write_plots(out, comparisons)
    for line in [
        *sentences,
        *notes,
        f"{out / 'answer.md'}: the answer and the table; {out / 'trials.csv'}: all figures",
    ]:
        say(line)
    done = sum((path / RESULT).exists() for path in directories)
    return {"trials": {"done": done, "failed": {path.name: line for path, line in failed.items()}}, "answer": sentences}
