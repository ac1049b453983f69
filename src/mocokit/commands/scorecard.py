"""``mocokit scorecard RUN DATA``: how good features are without labels, compared with the random initialisation."""

import time
from pathlib import Path
from typing import Any

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import record
from mocokit.config import ScorecardConfig
from mocokit.console import say
from mocokit.data.view_params import AUGMENTATIONS, augmentations
from mocokit.errors import UserError
from mocokit.evaluation.evaluator import Evaluator
from mocokit.evaluation.scorecard import SCORES
from mocokit.options import documented, fields_of, validate
from mocokit.rundir import RunDirectory

MIN_IMAGES = 2  # the scores compare images with each other


@documented(ScorecardConfig)
def scorecard(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Compare an encoder with its random initialisation by the scores that need no labels.

    Args:
        run: a run directory, whose own augmentation makes the two views of each image; or an
            ``encoder.safetensors``, for which the augmentation is that of MoCo v2.
        data: images, as for `mocokit.pretrain`; the training split is scored, or if there is none, the next.
        options: any other field of `mocokit.config.ScorecardConfig`.

    Returns:
        ``scorecard``: ``encoder`` and ``random_init``, each with the `SCORES` by name; ``meaning``: a sentence on
        each; ``images``: how many were scored; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no encoder there, fewer than two images, or a wrong option.
    """
    started = time.perf_counter()
    config = ScorecardConfig(**validate({"run": run, "data": data, **options}, fields_of(ScorecardConfig)))
    directory = RunDirectory(Path(run))
    views = augmentations(directory.read_config().config) if directory.config.exists() else AUGMENTATIONS["v2"]
    inputs = open_inputs(config)
    images = inputs.store.main
    if len(images) < MIN_IMAGES:
        raise UserError(f"{data}: the scorecard compares images with each other; give at least {MIN_IMAGES}")
    evaluator = Evaluator(images, views, config.seed, knn=None, score_images=config.images)
    encoder = evaluator.evaluate(inputs.encoder).scores
    random_init = evaluator.evaluate(inputs.random_init).scores
    meaning = {score.name: score.meaning(encoder[score.name], random_init[score.name]) for score in SCORES}
    _show(encoder, random_init, meaning)
    scores = {"encoder": encoder, "random_init": random_init}
    figures = {"scorecard": scores, "meaning": meaning, "images": min(config.images, len(images))}
    return record("scorecard", run, config, figures, started, inputs.store.fingerprint)


def _show(encoder: dict[str, float], random_init: dict[str, float], meaning: dict[str, str]) -> None:
    """The scores as a table on stderr."""
    say(f"{'':22}{'encoder':>10}{'random init':>14}")
    for score in SCORES:
        value, before = encoder[score.name], random_init[score.name]
        say(f"{score.name:22}{value:10.3f}{before:14.3f}   {score.better} is better, {score.range}")
        say(f"    {score.definition} ({score.source})")
        say(f"    here: {meaning[score.name]}")
