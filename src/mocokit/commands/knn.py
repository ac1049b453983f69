"""``mocokit knn RUN DATA``: kNN accuracy of an encoder, of its random initialisation and of raw pixels."""

import time
from pathlib import Path
from typing import Any

from mocokit.commands.environment import pick_device, versions
from mocokit.config import KnnConfig, fields_of, validate
from mocokit.console import progress, say
from mocokit.data.store import open_store
from mocokit.deploy.encoder import load, read_header
from mocokit.errors import UserError
from mocokit.evaluation.baselines import random_encoder
from mocokit.evaluation.features import extract, pixels
from mocokit.evaluation.knn import KnnTest
from mocokit.rundir import RunDirectory


def knn(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Compare an encoder with what it has to beat, by weighted kNN on labelled images.

    Args:
        run: a run directory or its ``encoder.safetensors``.
        data: labelled images, as for `mocokit.pretrain`; the training split is the bank, the test (or else the
            validation) split asks; without either each image is left out of its own vote.
        options: any other field of `mocokit.config.KnnConfig`.

    Returns:
        ``encoder``, ``random_init`` and ``pixels``, each ``{top1, top5}``, and how they were measured.

    Raises:
        UserError: no encoder there, no labels in the data, or a wrong option.
    """
    started = time.perf_counter()
    given = validate({"run": run, "data": data, **options}, fields_of(KnnConfig))
    config = KnnConfig(**given)
    spec, about = read_header(config.run)
    with progress("decoding images") as report:
        store = open_store(
            config.data,
            image_size=spec.image_size,
            image_size_cap=spec.image_size,
            limit=config.limit,
            max_skipped=config.max_skipped,
            deep_range=spec.deep_range,
            channels=spec.channels,
            progress=report,
        )
    say(store.summary())
    if store.label_names is None:
        raise UserError(f"{config.data}: kNN needs labels; put the images into one folder for each class")
    device = pick_device(config.device)
    test = KnnTest(store, config.k, config.temperature)
    encoder = load(config.run, device)
    untrained = random_encoder(spec, about["seed"], test.bank, device)
    accuracies = {
        "encoder": test.accuracy(lambda images, _: extract(encoder, images)),
        "random_init": test.accuracy(lambda images, _: extract(untrained, images)),
        "pixels": test.accuracy(lambda images, _: pixels(images, spec.image_size)),
    }
    result = {name: accuracy._asdict() for name, accuracy in accuracies.items()} | {
        "k": config.k,
        "temperature": config.temperature,
        "data": config.data,
        "data_fingerprint": store.fingerprint,
        "wall_s": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }
    for name, accuracy in accuracies.items():
        say(f"{name.replace('_', ' '):12} top-1 {accuracy.top1:7.2%}  top-5 {accuracy.top5:7.2%}")
    if Path(config.run).is_dir():
        directory = RunDirectory(Path(config.run))
        with directory.writing():
            directory.write_result("knn", result)
    return result
