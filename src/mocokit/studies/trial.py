"""One trial of a study, a process of its own: ``python -m mocokit.studies.trial DIRECTORY``.

It runs the ordinary commands by their public names: pretrain, knn, probe, finetune; and leaves ``result.json``. Killed,
and started again, it goes on from their checkpoints.
"""

import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

import mocokit
from mocokit.auto.finetuning import choose_batch_size
from mocokit.files import read_json, write_json
from mocokit.machine import cpu_name, versions
from mocokit.studies.statistics import ALL

REQUEST, RESULT, LOG = "trial.json", "result.json", "log.txt"
# Rows of results of a verb, and the method that they are about.
OF_RUN = {"encoder": "moco", "random_init": "random-init", "raw_pixels": "raw-pixels"}
OF_CONTINUED = {"encoder": "moco-continued", "given_weights": "off-the-shelf"}
OF_SCRATCH = {"encoder": "from-scratch"}
OF_TUNED = {"encoder": "moco-finetuned"}
LEARNED = ("moco", "moco-continued", "from-scratch")  # features that depend on the subset
KNN_IMAGES = 1000  # of pretraining's own figures, which the study does not use


def is_done(directory: Path, request: dict[str, Any]) -> bool:
    """Whether the result is there, of all labels and methods that are asked for."""
    done = read_json(directory / RESULT)
    return bool(done) and all(set(request[what]) <= set(done[what]) for what in ("labels", "methods"))


def run(directory: Path) -> None:
    """Do what ``trial.json`` asks for, unless that is done; a second process on one directory waits for the first."""
    with FileLock(directory / ".lock"):
        request = read_json(directory / REQUEST)
        if is_done(directory, request):
            return
        started, before = time.perf_counter(), read_json(directory / RESULT)
        for what in ("labels", "methods"):
            request[what] = list(dict.fromkeys([*before.get(what, []), *request[what]]))
        rows = [row for row in _measure(directory, request) if row["method"] in request["methods"]]
        result = {what: request[what] for what in ("cell", "labels", "methods")}
        result |= {"machine": f"{platform.node()}, {cpu_name()}", "versions": versions(), "rows": rows}
        result["wall_s"] = round(before.get("wall_s", 0) + time.perf_counter() - started, 1)
        write_json(directory / RESULT, result)


def _measure(directory: Path, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of all methods; of a measurement that is made, some may be of no method that is asked for."""
    methods, cell, counts = set(request["methods"]), request["cell"], request["counts"]
    data, common = request["data"], request["common"] | {"seed": cell["seed"]}
    subset = common | {"limit": cell["images"], "imbalance": cell["imbalance"]}

    def frozen(run: Path, names: dict[str, str], seconds: float, of_subset: bool = True) -> Iterator[dict[str, Any]]:
        """kNN and linear probes of a run's features; a classifier's own labels it has learned already."""
        beside: dict[str, Any] = {"baseline": bool(methods & set(names.values()) - set(LEARNED))}
        for measure, figures in (
            ("knn", mocokit.knn(str(run), data, **common, **beside)),
            ("probe-all", mocokit.probe(str(run), data, **common, **beside)),
        ):
            yield from _rows(figures, names, measure, ALL, counts, seconds)
        for labels in request["labels"] if of_subset else ():
            few: dict[str, Any] = {} if labels == ALL else {"labels_per_class": int(labels)}
            figures = mocokit.probe(str(run), data, **subset, **few, **beside)
            yield from _rows(figures, names, "probe", labels, counts, seconds)

    def tuned(names: dict[str, str], seconds: float) -> Iterator[dict[str, Any]]:
        """Fine-tuning from the run, or training from scratch, on the labels of the subset and on k a class."""
        for labels in request["labels"]:
            out = directory / f"{next(iter(names.values()))}-{labels}"
            images = cell["images"] if labels == ALL else int(labels) * len(counts)
            of = subset if labels == ALL else subset | {"limit": images, "imbalance": 1.0}
            options = _schedule(images, request["finetune_steps"]) | {"from_scratch": names is OF_SCRATCH}
            figures = mocokit.finetune(str(run), data, out=str(out), baseline=False, patience=0, **options, **of)
            trained = seconds + figures["encoder"]["train_s"]
            yield from _rows(figures, names, "finetune", labels, counts, trained)
            if labels == ALL and names is OF_SCRATCH:
                yield from frozen(out, names, trained, of_subset=False)

    learns = bool(methods & {"moco", "moco-finetuned"})
    run = directory / ("run" if learns else "untrained")
    pretraining = request["pretraining"] | subset
    untrained = {name: value for name, value in pretraining.items() if name != "time_budget"} | {"steps": 1}
    seconds = _pretrain(data, run, pretraining if learns else untrained)
    if methods & set(OF_RUN.values()):
        yield from frozen(run, OF_RUN, seconds)
    if "moco-finetuned" in methods:
        yield from tuned(OF_TUNED, seconds)
    if "from-scratch" in methods:
        yield from tuned(OF_SCRATCH, 0.0)
    if methods & set(OF_CONTINUED.values()):
        options = {name: value for name, value in pretraining.items() if name not in ("recipe", "backbone")}
        seconds = _pretrain(data, directory / "continued", options | {"weights": request["weights"]})
        yield from frozen(directory / "continued", OF_CONTINUED, seconds)


def _pretrain(data: str, out: Path, options: dict[str, Any]) -> float:
    """Seconds that a pretraining took; one that is finished says it again."""
    threads = options["threads"]
    plain = {"report": False, "histograms": False, "monitor_every": 0, "knn_images": KNN_IMAGES}
    options = plain | options | {"workers": 0 if threads == 1 else threads}
    return float(mocokit.pretrain(data, out=str(out), **options)["wall_s"])


def _schedule(images: int, steps: int) -> dict[str, Any]:
    """Batch size and epochs of about so many ``steps`` on a subset, of which a part validates."""
    from mocokit.evaluation.splits import SHARE  # imports torch, which who starts trials does not need

    train = max(1, round((1 - SHARE) * images))
    batch = min(choose_batch_size(train), max(2, train))
    return {"batch_size": batch, "epochs": max(1, round(steps / max(1, train // batch)))}


def _rows(
    figures: dict[str, Any], names: dict[str, str], measure: str, labels: str, counts: dict[str, int], seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for each method and figure of a verb's result; ``seconds`` is what the training took."""
    for key, method in names.items():
        found = figures.get(key) or {}
        values = {name: found.get(name) for name in ("top1", "balanced")} | _by_shots(found.get("per_class"), counts)
        took = seconds if method not in ("random-init", "raw-pixels", "off-the-shelf") else 0.0
        for name, value in values.items():
            if value is not None:
                row = {"method": method, "measure": measure, "labels": labels, "figure": name}
                yield row | {"accuracy": value, "seconds": round(took, 1)}


def _by_shots(per_class: dict[str, Any] | None, counts: dict[str, int]) -> dict[str, float]:
    """Mean recall of many-, medium- and few-shot classes, terciles by count, and how it spreads over all classes."""
    recalls = {name: row["recall"] for name, row in (per_class or {}).items() if row["recall"] is not None}
    classes = sorted((name for name in recalls if name in counts), key=lambda name: -counts[name])
    if len(classes) < 2:
        return {}
    shots: dict[str, float] = {}
    if len(classes) > 2 and counts[classes[0]] > counts[classes[-1]] + 1:  # else there are no few-shot classes
        thirds = np.array_split(np.array([recalls[name] for name in classes]), 3)
        shots = {name: float(part.mean()) for name, part in zip(("many", "medium", "few"), thirds, strict=True)}
    return shots | {"spread": float(np.std([recalls[name] for name in classes], ddof=1))}


if __name__ == "__main__":
    from mocokit.errors import Interrupted, UserError

    try:
        run(Path(sys.argv[1]))
    except (UserError, Interrupted) as error:  # the last line of the log, which the study repeats
        sys.exit(" ".join(str(error).split()))
