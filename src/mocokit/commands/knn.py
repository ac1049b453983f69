"""``mocokit knn RUN DATA``: kNN accuracy of an encoder, of its random initialisation and of raw pixels."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import record
from mocokit.config import KnnConfig
from mocokit.console import say
from mocokit.data.store import ImageSet
from mocokit.evaluation.classification import bootstrap_interval
from mocokit.evaluation.features import extract, pixels
from mocokit.evaluation.knn import KnnEvaluator
from mocokit.options import documented, fields_of, validate


@documented(KnnConfig)
def knn(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Compare an encoder with what it has to beat, by weighted kNN on labelled images.

    Args:
        run: a run directory or its ``encoder.safetensors``.
        data: labelled images, as for `mocokit.pretrain`; the training split is the bank, the test (or else the
            validation) split asks; without either each image is left out of its own vote.
        options: any other field of `mocokit.config.KnnConfig`.

    Returns:
        ``encoder``, ``random_init`` and ``pixels``, each ``{top1, top5, ci95, wall_s}``; ``wall_s``, ``config``,
        ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no encoder there, no labels in the data, or a wrong option.
    """
    started = time.perf_counter()
    config = KnnConfig(**validate({"run": run, "data": data, **options}, fields_of(KnnConfig)))
    inputs = open_inputs(config, labels_for="kNN")
    test = KnnEvaluator(inputs.store, config.k, config.temperature)
    features: dict[str, Callable[[ImageSet, Tensor | None], Tensor]] = {
        "encoder": lambda images, _: extract(inputs.encoder, images),
        "random_init": lambda images, _: extract(inputs.random_init, images),
        "pixels": lambda images, _: pixels(images, inputs.spec.image_size),
    }
    figures: dict[str, Any] = {}
    for name, extracted in features.items():
        begun = time.perf_counter()
        accuracy = test.accuracy(extracted)
        low, high = bootstrap_interval(accuracy.top1, test.asked, config.seed)
        seconds = round(time.perf_counter() - begun, 2)
        figures[name] = {**accuracy._asdict(), "ci95": [low, high], "wall_s": seconds}
        say(
            f"{name.replace('_', ' '):12} top-1 {accuracy.top1:7.2%} ({low:.2%} to {high:.2%})  "
            f"top-5 {accuracy.top5:7.2%}"
        )
    return record("knn", run, config, figures, started, inputs.store.fingerprint)
