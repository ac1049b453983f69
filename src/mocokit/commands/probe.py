"""``mocokit probe RUN DATA``: linear classification on frozen features, compared with its baselines."""

import math
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import accuracy_line, record
from mocokit.config import ProbeConfig
from mocokit.console import progress, say
from mocokit.errors import UserError
from mocokit.evaluation.baselines import Features, features_of, row_name, simple_features
from mocokit.evaluation.logistic import LinearClassifier
from mocokit.evaluation.metrics import classification_metrics, repeated_interval
from mocokit.evaluation.probe import fast, frozen, labelled_features, reduced
from mocokit.evaluation.splits import LabelledSplits, Subset
from mocokit.model.encoder import Encoder
from mocokit.options import config_of, documented
from mocokit.rundir import RunDirectory

TrainVal = tuple[Subset, Subset | None]  # images to train on; without others to validate on, within those


@documented(ProbeConfig)
def probe(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Train a linear classifier on an encoder's frozen features, on those of its random initialisation, on raw pixels
    and on a colour histogram.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: labelled images, as for `mocokit.pretrain`; `mocokit.evaluation.splits.split_labelled` says which of
            them train, validate and test.
        options: any other field of `mocokit.config.ProbeConfig`.

    Returns:
        ``protocol``; ``encoder``, and with a ``baseline`` ``given_weights`` (of a run that went on from weights),
        ``random_init``, ``raw_pixels`` and ``colour_histogram``, each ``{top1, top5, balanced, ci95, balanced_ci95,
        per_class, confusion}`` on the test images, with ``wall_s`` and, in the fast protocol, which the latter two
        always follow, the chosen ``l2``; top5 is None for five classes or fewer that train; ``ci95_of``, what the
        intervals allow for; ``images``, the numbers of ``train``, ``val`` and ``test`` images; ``test``, what the test
        images are (``{images, split, held_out, near_duplicates}``); ``wall_s``, ``config``, ``data_fingerprint``,
        ``versions``. With few labels figures are means over the repeats, without precision and ``confusion``,
        ``accuracies`` lists each top-1, and ``l2`` is a list.

    Raises:
        UserError: no encoder there, no labels in the data, too few labels, or a wrong option.
    """
    started = time.perf_counter()
    config = config_of(ProbeConfig, run=run, data=data, **options)
    if config.labels_per_class is not None and config.label_fraction is not None:
        raise UserError("--labels-per-class and --label-fraction exclude each other; give one")
    inputs = open_inputs(config, labels_for="a linear probe", to_train=True)
    assert inputs.parts is not None
    splits = inputs.parts
    repeats: list[TrainVal] = [(splits.train, splits.val)]
    if _has_few_labels(config):
        few = config.labels_per_class, config.label_fraction, config.seed
        repeats = [(splits.few_shot(*few, repeat), None) for repeat in range(config.repeats)]
    train, val = repeats[0]
    drawn = "top-1 over test images" if len(repeats) == 1 else "mean top-1 over choices of labels and test images"
    simple = simple_features(inputs.spec.image_size) if config.baseline else {}
    if simple:
        simple["raw_pixels"] = reduced(simple["raw_pixels"], splits.train_val)
    figures: dict[str, Any] = {"protocol": config.protocol}
    for key, encoder in inputs.compared(config.baseline).items():
        figures[key] = _measure_encoder(key, encoder, splits, repeats, config)
    if config.protocol == "sgd" and simple:
        say("without a network, by the fast protocol:")
    for key, features in simple.items():
        one_scale = key == "raw_pixels"
        figures[key] = _measure(row_name(key, inputs.spec.channels), features, splits, repeats, config, None, one_scale)
    figures |= {"ci95_of": drawn, "images": {"train": len(train), "val": len(val or ()), "test": len(splits.test)}}
    figures["test"] = inputs.test
    also = ("probe_sgd",) if config.protocol == "sgd" else ()  # kept when a fast probe replaces probe.json
    return record("probe", config.run, config, figures, started, inputs.store.fingerprint, *also)


def _has_few_labels(config: ProbeConfig) -> bool:
    return config.labels_per_class is not None or config.label_fraction is not None


def _measure_encoder(
    who: str, encoder: Encoder, splits: LabelledSplits, repeats: list[TrainVal], config: ProbeConfig
) -> dict[str, Any]:
    """Figures of an encoder by the protocol that is asked for."""
    started, name = time.perf_counter(), row_name(who, encoder.spec.channels)
    with frozen(encoder):
        trained = _train_sgd(name, encoder, repeats, len(splits.names), config) if config.protocol == "sgd" else None
        figures = _measure(name, features_of(encoder), splits, repeats, config, trained)
    return figures | {"wall_s": round(time.perf_counter() - started, 2)}


def _measure(
    name: str,
    features: Features,
    splits: LabelledSplits,
    repeats: list[TrainVal],
    config: ProbeConfig,
    trained: list[LinearClassifier] | None = None,
    one_scale: bool = False,
) -> dict[str, Any]:
    """Figures of one kind of features on the test images, also printed to stderr, by the classifiers that are
    ``trained``, or else by the fast protocol."""
    started, few = time.perf_counter(), _has_few_labels(config)
    x, labels = labelled_features(features, splits.test)
    classifiers = trained or [fast(features, *data, len(splits.names), config.seed, one_scale) for data in repeats]
    metrics = [classification_metrics(c.scores(x), labels, splits.names, splits.trained) for c in classifiers]
    figures = _averages(metrics) if few else metrics[0]
    if trained is None:
        figures["l2"] = [c.l2 for c in classifiers] if few else classifiers[0].l2
    say(accuracy_line(name, figures))
    return figures | {"wall_s": round(time.perf_counter() - started, 2)}


def _averages(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the choices of labels, with intervals over both these and the test images."""
    values = {name: [each[name] for each in metrics] for name in ("top1", "top5", "balanced")}
    figures: dict[str, Any] = {
        name: None if None in of_choices else fmean(of_choices) for name, of_choices in values.items()
    }
    for name, interval in (("top1", "ci95"), ("balanced", "balanced_ci95")):
        figures[interval] = list(repeated_interval(values[name], [each[interval] for each in metrics]))
    figures["per_class"] = {}
    for name, row in metrics[0]["per_class"].items():
        of_choices = [each["per_class"][name]["recall"] for each in metrics]
        recall = None if None in of_choices else fmean(of_choices)
        figures["per_class"][name] = {"recall": recall, "images": row["images"]}
    return figures | {"accuracies": values["top1"]}


def _train_sgd(
    name: str, encoder: Encoder, repeats: list[TrainVal], classes: int, config: ProbeConfig
) -> list[LinearClassifier]:
    """The classifier after the last epoch of each training."""
    from mocokit.training.linear_probe import sgd  # Lightning takes a second to import

    run, classifiers = RunDirectory(Path(config.run)), []
    logs = name == "encoder" and not _has_few_labels(config)
    logged = run if logs and _may_write(run) else None
    chance, total = math.log(classes), len(repeats) * config.epochs
    with progress(f"{name}, epochs") as report, run.writing():
        for repeat, (train, val) in enumerate(repeats):

            def announce(row: dict[str, Any], done: int = repeat * config.epochs) -> None:
                report(done + row["epoch"], total)

            validation = labelled_features(features_of(encoder), val) if val else None
            images, rows = train.images, train.indices
            trained = sgd(encoder, images, rows, validation, classes, config, run=logged, announce=announce)
            classifiers.append(LinearClassifier(trained.weight, trained.bias))
            if (loss := trained.loss) > chance:
                say(f"{name}: the last epoch's loss {loss:.2f} is above chance ({chance:.2f}); try a lower --lr")
    return classifiers


def _may_write(run: RunDirectory) -> bool:
    """Whether ``run`` is a directory that takes the rows of epochs; told where it does not."""
    if not run.path.is_dir():
        return False
    try:
        with tempfile.TemporaryFile(dir=run.path):
            return True
    except OSError as error:
        say(f"{run.path}: can't be written ({error.strerror}), so there are no rows of the epochs")
        return False
