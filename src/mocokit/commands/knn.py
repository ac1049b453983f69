"""``mocokit knn RUN DATA``: kNN accuracy of an encoder, of its random initialisation and of what takes no network."""

import time
from collections.abc import Sequence
from typing import Any

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import accuracy_line, record
from mocokit.config import KnnConfig
from mocokit.console import say
from mocokit.evaluation.baselines import Features, features_of, row_name, simple_features
from mocokit.evaluation.knn import Accuracy, KnnEvaluator
from mocokit.evaluation.metrics import recalls
from mocokit.options import config_of, documented


@documented(KnnConfig)
def knn(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Compare an encoder with its baselines by weighted kNN classification of labelled images.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: labelled images, as for `mocokit.pretrain`; `mocokit.evaluation.splits.split_labelled` says which of
            them are classified by which others.
        options: any other field of `mocokit.config.KnnConfig`.

    Returns:
        ``encoder``, and with a ``baseline`` ``given_weights`` (of a run that went on from weights), ``random_init``,
        ``raw_pixels`` and ``colour_histogram`` (of gray images: of gray levels and edge directions), each ``{top1,
        top5, ci95, balanced, per_class: {name: {recall, images}}, wall_s}``, top5 being None for five classes or fewer
        that train; ``test``, what the test images are (``{images, split, held_out, near_duplicates}``); ``wall_s``,
        ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no encoder there, no labels in the data, or a wrong option.
    """
    started = time.perf_counter()
    config = config_of(KnnConfig, run=run, data=data, **options)
    inputs = open_inputs(config, labels_for="kNN")
    assert inputs.parts is not None
    evaluator = KnnEvaluator.of(inputs.parts, config.k, config.temperature)
    if line := evaluator.all_vote("--k"):
        say(line)
    features = {key: features_of(encoder) for key, encoder in inputs.compared(config.baseline).items()}
    features |= simple_features(inputs.spec.image_size) if config.baseline else {}
    channels = inputs.spec.channels
    names = inputs.parts.names
    figures = {key: _measure(row_name(key, channels), evaluator, names, kind) for key, kind in features.items()}
    figures["test"] = inputs.test
    return record("knn", config.run, config, figures, started, inputs.store.fingerprint)


def _measure(name: str, evaluator: KnnEvaluator, label_names: Sequence[str], features: Features) -> dict[str, Any]:
    """Figures of one kind of features, also printed to stderr."""
    started = time.perf_counter()
    ranks = evaluator.ranks(features)
    figures = Accuracy.of(ranks, evaluator.classes).figures()
    say(accuracy_line(name, figures))
    figures |= recalls(ranks == 0, evaluator.queries.labels, label_names)
    return figures | {"wall_s": round(time.perf_counter() - started, 2)}
