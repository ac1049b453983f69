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
from mocokit.evaluation.evaluator import Evaluator, Metrics
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
        ``scorecard``: ``encoder`` and ``random_init``, each with the `SCORES` by name; ``retrieval_ci95``: of both, the
        95 % interval of the one score that is an accuracy; ``meaning``: a sentence on each; ``images``: how many were
        scored; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.

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
    encoder, random_init = evaluator.evaluate(inputs.encoder), evaluator.evaluate(inputs.random_init)
    meaning = {s.name: s.meaning(encoder.scores[s.name], random_init.scores[s.name]) for s in SCORES}
    _show(encoder, random_init, meaning)
    figures = {
        "scorecard": {"encoder": encoder.scores, "random_init": random_init.scores},
        "retrieval_ci95": {"encoder": encoder.retrieval_ci95, "random_init": random_init.retrieval_ci95},
        "meaning": meaning,
        "images": encoder.images,
    }
    return record("scorecard", run, config, figures, started, inputs.store.fingerprint)


def _show(encoder: Metrics, random_init: Metrics, meaning: dict[str, str]) -> None:
    """The scores as a table on stderr."""
    say(f"{'':22}{'encoder':>10}{'random init':>14}")
    for score in SCORES:
        value, before = encoder.scores[score.name], random_init.scores[score.name]
        say(f"{score.name:22}{value:10.3f}{before:14.3f}   {score.better} is better, {score.range}")
        if score.name == "retrieval":
            (low, high), (low_before, high_before) = encoder.retrieval_ci95, random_init.retrieval_ci95
            say(f"    95 %: {low:.3f} to {high:.3f}, random init {low_before:.3f} to {high_before:.3f}")
        say(f"    {score.definition} ({score.source})")
        say(f"    here: {meaning[score.name]}")
