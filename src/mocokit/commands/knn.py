"""``mocokit knn RUN DATA``: kNN accuracy of an encoder, of its random initialisation and of raw pixels."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import record
from mocokit.config import KnnConfig
from mocokit.console import say
from mocokit.evaluation.features import extract, pixels
from mocokit.evaluation.knn import Accuracy, KnnEvaluator
from mocokit.evaluation.splits import Subset
from mocokit.options import documented, fields_of, validate


@documented(KnnConfig)
def knn(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Compare an encoder with its baselines by weighted kNN classification of labelled images.

    Args:
        run: a run directory or its ``encoder.safetensors``.
        data: labelled images, as for `mocokit.pretrain`; `mocokit.evaluation.splits.split_labelled` says which of
            them are classified by which others.
        options: any other field of `mocokit.config.KnnConfig`.

    Returns:
        ``encoder``, ``random_init`` and ``pixels``, each ``{top1, top5, ci95, wall_s}``; ``test``, what the test images
        are (``{images, split, held_out, near_duplicates}``); ``wall_s``, ``config``, ``data_fingerprint``,
        ``versions``.

    Raises:
        UserError: no encoder there, no labels in the data, or a wrong option.
    """
    started = time.perf_counter()
    config = KnnConfig(**validate({"run": run, "data": data, **options}, fields_of(KnnConfig)))
    inputs = open_inputs(config, labels_for="kNN")
    assert inputs.parts is not None
    evaluator = KnnEvaluator.of(inputs.parts, config.k, config.temperature)
    size = inputs.spec.image_size
    figures = {
        "encoder": _measure("encoder", evaluator, lambda p: extract(inputs.encoder, p.images, p.indices)),
        "random_init": _measure("random init", evaluator, lambda p: extract(inputs.random_init, p.images, p.indices)),
        "pixels": _measure("pixels", evaluator, lambda p: pixels(p.images, size, p.indices)),
        "test": inputs.test,
    }
    return record("knn", run, config, figures, started, inputs.store.fingerprint)


def _measure(name: str, evaluator: KnnEvaluator, features: Callable[[Subset], Tensor]) -> dict[str, Any]:
    """Figures of one kind of features, also printed to stderr."""
    started = time.perf_counter()
    figures = Accuracy.of(evaluator.ranks(features)).figures()
    low, high = figures["ci95"]
    say(f"{name:12} top-1 {figures['top1']:7.2%} ({low:.2%} to {high:.2%})  top-5 {figures['top5']:7.2%}")
    return figures | {"wall_s": round(time.perf_counter() - started, 2)}
