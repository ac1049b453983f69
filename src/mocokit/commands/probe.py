"""``mocokit probe RUN DATA``: linear classification on frozen features, beside the random initialisation."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import record
from mocokit.config import ProbeConfig
from mocokit.console import progress, say
from mocokit.errors import UserError
from mocokit.evaluation.classification import Classification, classify, t_interval
from mocokit.evaluation.features import extract
from mocokit.evaluation.logistic import LinearClassifier
from mocokit.evaluation.probe import Epoch, fast, frozen, sgd
from mocokit.evaluation.splits import LabelledSplits, Subset, split_labelled
from mocokit.files import write_text
from mocokit.model.encoder import Encoder
from mocokit.options import documented, fields_of, validate
from mocokit.rundir import RunDirectory


class Lesson(NamedTuple):
    """What a classifier is made from: images to learn from, and to validate on if they are not among those."""

    train: Subset
    val: Subset | None


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
        the test images, with ``wall_s`` and, in the fast protocol, the chosen ``l2``; ``ci95_of``; ``images``,
        how many ``train``, ``val`` and ``test``; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``. With
        few labels figures are means over the repeats, ``accuracies`` lists each top-1 in place of ``per_class``
        and ``confusion``, and ``l2`` is a list.

    Raises:
        UserError: no encoder there, no labels in the data, fewer labels than asked for, or a wrong option.
    """
    started = time.perf_counter()
    config = ProbeConfig(**validate({"run": run, "data": data, **options}, fields_of(ProbeConfig)))
    if config.labels_per_class is not None and config.label_fraction is not None:
        raise UserError("--labels-per-class and --label-fraction exclude each other; give one")
    inputs = open_inputs(config, labels_for="a linear probe")
    labelled = split_labelled(inputs.store, config.seed)
    lessons = _lessons(labelled, config)
    log = RunDirectory(Path(run)) if Path(run).is_dir() and not _few(config) else None
    figures = {
        "protocol": config.protocol,
        "encoder": _measure("encoder", inputs.encoder, labelled, lessons, config, log),
        "random_init": _measure("random init", inputs.random_init, labelled, lessons, config),
        "ci95_of": "mean top-1 over choices of labels" if len(lessons) > 1 else "top-1 over test images",
        "images": {
            "train": len(lessons[0].train),
            "val": len(lessons[0].val or ()),
            "test": len(labelled.test),
        },
    }
    if config.protocol == "sgd":  # stays when a fast probe replaces probe.json
        record("probe_sgd", run, config, figures, started, inputs.store.fingerprint)
    return record("probe", run, config, figures, started, inputs.store.fingerprint)


def _few(config: ProbeConfig) -> bool:
    return config.labels_per_class is not None or config.label_fraction is not None


def _lessons(labelled: LabelledSplits, config: ProbeConfig) -> list[Lesson]:
    """All labels once, or few labels several times, which have to do for validation too."""
    if not _few(config):
        return [Lesson(labelled.train, labelled.val)]
    per_class, fraction = config.labels_per_class, config.label_fraction
    return [Lesson(labelled.few(per_class, fraction, config.seed, r), None) for r in range(config.repeats)]


def _measure(
    name: str,
    encoder: Encoder,
    labelled: LabelledSplits,
    lessons: list[Lesson],
    config: ProbeConfig,
    log: RunDirectory | None = None,
) -> dict[str, Any]:
    """Figures of an encoder on the test images, also told on stderr; ``log``: where to keep the epochs of sgd."""
    test, classes, begun = labelled.test, len(labelled.names), time.perf_counter()
    with frozen(encoder):
        features = extract(encoder, test.images, test.indices)
        if config.protocol == "fast":
            classifiers = [fast(encoder, *lesson, classes, config.seed) for lesson in lessons]
        else:
            runs = [sgd(encoder, *lesson, classes, config) for lesson in lessons]
            classifiers = _last(runs, name, config.epochs, log)
    found = [classify(c.scores(features), test.labels, config.seed) for c in classifiers]
    figures = _averages(found) if _few(config) else found[0].as_dict(labelled.names)
    if config.protocol == "fast":
        l2s = [c.l2 for c in classifiers]
        figures["l2"] = l2s if _few(config) else l2s[0]
    figures["wall_s"] = round(time.perf_counter() - begun, 2)
    low, high = figures["ci95"]
    say(
        f"{name:12} top-1 {figures['top1']:7.2%}  (95 %: {low:.2%} to {high:.2%})  top-5 {figures['top5']:7.2%}  "
        f"balanced {figures['balanced']:7.2%}"
    )
    return figures


def _averages(found: list[Classification]) -> dict[str, Any]:
    """Means over choices of few labels, and the interval of the mean; of a single choice, over test images."""
    accuracies = [each.top1 for each in found]
    return {
        "top1": fmean(accuracies),
        "top5": fmean(each.top5 for each in found),
        "balanced": fmean(each.balanced for each in found),
        "ci95": list(t_interval(accuracies) if len(found) > 1 else found[0].ci95),
        "accuracies": accuracies,
    }


def _last(
    runs: list[Iterator[Epoch]], name: str, epochs: int, log: RunDirectory | None
) -> list[LinearClassifier]:
    """The classifier after the last epoch of each run."""
    classifiers = []
    with progress(f"{name}, epochs") as report:
        for number, run in enumerate(runs):
            for epoch in _logged(run, log) if log else run:
                report(number * epochs + epoch.number, len(runs) * epochs)
            classifiers.append(epoch.classifier)
            chance = math.log(len(epoch.classifier.bias))
            if epoch.loss > chance:
                say(
                    f"{name}: the loss ended at {epoch.loss:.2f}, above chance ({chance:.2f}): too high an --lr for it"
                )
    return classifiers


def _logged(epochs: Iterator[Epoch], run: RunDirectory) -> Iterator[Epoch]:
    """Pass on each epoch once it is in ``RUN/probe-sgd.csv`` and, with its weights, in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter  # slow, and only sgd needs it

    rows = ["epoch,loss,val_top1"]
    with run.writing():
        # Step 0 purged: TensorBoard shows no epochs of an earlier probe in between.
        writer = SummaryWriter(str(run.tensorboard / "probe-sgd"), purge_step=0)
    for epoch in epochs:
        val_top1 = "" if epoch.val_top1 is None else f"{epoch.val_top1:.6g}"
        rows.append(f"{epoch.number},{epoch.loss:.6g},{val_top1}")
        with run.writing():
            write_text(run.path / "probe-sgd.csv", "\n".join(rows) + "\n")
            writer.add_scalar("loss", epoch.loss, epoch.number)
            if epoch.val_top1 is not None:
                writer.add_scalar("val_top1", epoch.val_top1, epoch.number)
            writer.add_histogram("weight", epoch.classifier.weight, epoch.number)
            writer.add_histogram("bias", epoch.classifier.bias, epoch.number)
            writer.flush()
        yield epoch
    writer.close()
