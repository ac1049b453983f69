"""``mocokit scorecard RUN DATA``: how good features are without labels, compared with its baselines."""

import time
from pathlib import Path
from typing import Any

from mocokit.commands.inputs import open_inputs
from mocokit.commands.results import record
from mocokit.config import ScorecardConfig
from mocokit.console import say
from mocokit.data.view_params import AUGMENTATIONS, augmentations
from mocokit.errors import UserError
from mocokit.evaluation.baselines import row_name
from mocokit.evaluation.evaluator import Evaluator, Metrics
from mocokit.evaluation.scorecard import SCORES
from mocokit.options import config_of, documented
from mocokit.rundir import RunDirectory

MIN_IMAGES = 2  # the scores compare images with each other


@documented(ScorecardConfig)
def scorecard(run: str, data: str, **options: Any) -> dict[str, Any]:
    """Compare an encoder with its baselines by the scores that need no labels.

    Args:
        run: a run directory, whose own augmentation makes the two views of each image; or whatever else `mocokit.load`
            takes, for which the augmentation is that of MoCo v2.
        data: images, as for `mocokit.pretrain`; the training split is scored, or if there is none, the next.
        options: any other field of `mocokit.config.ScorecardConfig`.

    Returns:
        ``scorecard``: ``encoder``, maybe ``given_weights``, ``random_init``, ``raw_pixels`` and ``colour_histogram``,
        each with the `SCORES` by name; ``retrieval_ci95``: of each, the 95 % interval of the one score that is an
        accuracy; ``meaning``: a sentence on each score; ``images``: how many were scored; ``wall_s``, ``config``,
        ``data_fingerprint``, ``versions``. Labels are not looked at.

    Raises:
        UserError: no encoder there, fewer than two images, or a wrong option.
    """
    started = time.perf_counter()
    config = config_of(ScorecardConfig, run=run, data=data, **options)
    directory = RunDirectory(Path(config.run))
    v2 = AUGMENTATIONS["v2"]
    views = augmentations(directory.read_config().config) if directory.config.exists() else (v2, v2)
    inputs = open_inputs(config)
    images = inputs.store.main
    if len(images) < MIN_IMAGES:
        raise UserError(f"{config.data}: the scorecard compares images with each other; give at least {MIN_IMAGES}")
    evaluator = Evaluator(images, views, config.seed, knn=None, score_images=config.images)
    measured = {key: evaluator.evaluate(encoder) for key, encoder in inputs.encoders.items()}
    encoder, random_init = measured["encoder"], measured["random_init"]
    meaning = {s.name: s.meaning(encoder.scores[s.name], random_init.scores[s.name]) for s in SCORES}
    measured |= evaluator.evaluate_simple(inputs.spec.image_size)
    _show({row_name(who, images.channels): metrics for who, metrics in measured.items()}, meaning)
    figures = {
        "scorecard": {who: metrics.scores for who, metrics in measured.items()},
        "retrieval_ci95": {who: metrics.retrieval_ci95 for who, metrics in measured.items()},
        "meaning": meaning,
        "images": encoder.images,
    }
    return record("scorecard", config.run, config, figures, started, inputs.store.fingerprint)


def _show(measured: dict[str, Metrics], meaning: dict[str, str]) -> None:
    """The scores as a table on stderr, a column for each kind of features."""
    say(f"{'':19}" + "".join(f"  {name:>11}" for name in measured))
    for score in SCORES:
        values = (f"  {metrics.scores[score.name]:{max(11, len(name))}.3f}" for name, metrics in measured.items())
        say(f"{score.name:19}{''.join(values)}   {score.better} is better, {score.range}")
        if score.name == "retrieval":
            limits = ("{} {:.3f} to {:.3f}".format(name, *metrics.retrieval_ci95) for name, metrics in measured.items())
            say(f"    95 %: {', '.join(limits)}")
        say(f"    {score.definition} ({score.source})")
        say(f"    here: {meaning[score.name]}")
