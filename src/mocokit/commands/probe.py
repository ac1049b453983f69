"""``mocokit probe RUN DATA``: linear classification on frozen features, compared with the random initialisation."""

import math
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import record
from mocokit.config import ProbeConfig
from mocokit.console import progress, say
from mocokit.errors import UserError
from mocokit.evaluation.logistic import LinearClassifier
from mocokit.evaluation.metrics import classification_metrics, t_interval
from mocokit.evaluation.probe import fast, frozen, labelled_features
from mocokit.evaluation.splits import LabelledSplits, Subset, split_labelled
from mocokit.model.encoder import Encoder
from mocokit.options import documented, fields_of, validate
from mocokit.rundir import RunDirectory

TrainVal = tuple[Subset, Subset | None]  # images to train on; without others to validate on, within those


@documented(ProbeConfig)
def probe(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Train a linear classifier on an encoder's frozen features, and on those of its random initialisation.

    Args:
        run: a run directory or its ``encoder.safetensors``.
        data: labelled images, as for `mocokit.pretrain`; `mocokit.evaluation.splits.split_labelled` says which of
            them train, validate and test.
        options: any other field of `mocokit.config.ProbeConfig`.

    Returns:
        ``protocol``; ``encoder`` and ``random_init``, each ``{top1, top5, balanced, ci95, per_class, confusion}`` on
        the test images, with ``wall_s`` and, in the fast protocol, the chosen ``l2``; ``ci95_of``; ``images``, the
        numbers of ``train``, ``val`` and ``test`` images; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.
        With few labels figures are means over the repeats, ``accuracies`` lists each top-1 in place of ``per_class``
        and ``confusion``, and ``l2`` is a list.

    Raises:
        UserError: no encoder there, no labels in the data, too few labels, or a wrong option.
    """
    started = time.perf_counter()
    config = ProbeConfig(**validate({"run": run, "data": data, **options}, fields_of(ProbeConfig)))
    if config.labels_per_class is not None and config.label_fraction is not None:
        raise UserError("--labels-per-class and --label-fraction exclude each other; give one")
    inputs = open_inputs(config, labels_for="a linear probe", to_train=True)
    splits = split_labelled(inputs.store, config.seed)
    repeats: list[TrainVal] = [(splits.train, splits.val)]
    if _has_few_labels(config):
        few = config.labels_per_class, config.label_fraction, config.seed
        repeats = [(splits.few_shot(*few, repeat), None) for repeat in range(config.repeats)]
    train, val = repeats[0]
    figures = {
        "protocol": config.protocol,
        "encoder": _measure("encoder", inputs.encoder, splits, repeats, config),
        "random_init": _measure("random init", inputs.random_init, splits, repeats, config),
        "ci95_of": "mean top-1 over choices of labels" if len(repeats) > 1 else "top-1 over test images",
        "images": {"train": len(train), "val": len(val or ()), "test": len(splits.test)},
    }
    if config.protocol == "sgd":  # kept when a fast probe replaces probe.json
        record("probe_sgd", run, config, figures, started, inputs.store.fingerprint)
    return record("probe", run, config, figures, started, inputs.store.fingerprint)


def _has_few_labels(config: ProbeConfig) -> bool:
    return config.labels_per_class is not None or config.label_fraction is not None


def _measure(
    name: str, encoder: Encoder, splits: LabelledSplits, repeats: list[TrainVal], config: ProbeConfig
) -> dict[str, Any]:
    """Figures of an encoder on the test images, also printed to stderr."""
    started = time.perf_counter()
    classes = len(splits.names)
    with frozen(encoder):
        features, labels = labelled_features(encoder, splits.test)
        if config.protocol == "fast":
            classifiers = [fast(encoder, *data, classes, config.seed) for data in repeats]
        else:
            classifiers = _train_sgd(name, encoder, repeats, classes, config)
    metrics = [classification_metrics(c.scores(features), labels, splits.names) for c in classifiers]
    few = _has_few_labels(config)
    figures = _averages(metrics) if few else metrics[0]
    if config.protocol == "fast":
        figures["l2"] = [c.l2 for c in classifiers] if few else classifiers[0].l2
    figures["wall_s"] = round(time.perf_counter() - started, 2)
    low, high = figures["ci95"]
    others = f"top-5 {figures['top5']:7.2%}  balanced {figures['balanced']:7.2%}"
    say(f"{name:12} top-1 {figures['top1']:7.2%}  (95 %: {low:.2%} to {high:.2%})  {others}")
    return figures


def _averages(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over several choices of labels with the interval of the mean; of one choice, the interval over images."""
    means = {name: fmean(each[name] for each in metrics) for name in ("top1", "top5", "balanced")}
    accuracies = [each["top1"] for each in metrics]
    interval = list(t_interval(accuracies)) if len(metrics) > 1 else metrics[0]["ci95"]
    return means | {"ci95": interval, "accuracies": accuracies}


def _train_sgd(
    name: str, encoder: Encoder, repeats: list[TrainVal], classes: int, config: ProbeConfig
) -> list[LinearClassifier]:
    """The classifier after the last epoch of each training."""
    from mocokit.training.linear_probe import sgd  # Lightning takes a second to import

    run, classifiers = RunDirectory(Path(config.run)), []
    logged = run if name == "encoder" and run.path.is_dir() and not _has_few_labels(config) else None
    chance, total = math.log(classes), len(repeats) * config.epochs
    with progress(f"{name}, epochs") as report, run.writing():
        for repeat, (train, val) in enumerate(repeats):

            def announce(row: dict[str, Any], done: int = repeat * config.epochs) -> None:
                report(done + row["epoch"], total)

            validation = labelled_features(encoder, val) if val else None
            images, rows = train.images, train.indices
            trained = sgd(encoder, images, rows, validation, classes, config, run=logged, announce=announce)
            classifiers.append(LinearClassifier(trained.weight, trained.bias))
            if (loss := trained.loss) > chance:
                say(f"{name}: the last epoch's loss {loss:.2f} is above chance ({chance:.2f}); try a lower --lr")
    return classifiers
