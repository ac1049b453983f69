"""Colours and crops of the views, chosen by short runs; whether it pays is not known yet (docs/LOG.md)."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from mocokit.config import PretrainConfig
from mocokit.resolved import Resolved

# What is tried beside what `defaults` says, in turn: first colours, then crops with the better colours.
STAGES: tuple[tuple[Mapping[str, float], ...], ...] = (
    ({"jitter_strength": 0.25, "gray_p": 0.0},),
    ({"crop_min": 0.15}, {"crop_min": 0.7}),
)
SHARE, FEWEST_STEPS = 0.1, 100  # of the run's steps that each short run has; how many it has at least


def choose_views(
    resolved: Resolved, fixed: Collection[str], steps: int, score: Callable[[PretrainConfig], float]
) -> Resolved:
    """The views whose short run learns most; of equal ones the first, which is what `defaults` says.

    Args:
        resolved: the configuration as it is without.
        fixed: names of the options that the user or a recipe set, which stay.
        steps: of the whole run.
        score: share of images, from 0 to 1, that is right after the run of a configuration.
    """
    length: dict[str, Any] = {"steps": max(FEWEST_STEPS, int(SHARE * steps)), "turns": None, "warmup_steps": 0}
    best = replace(resolved.config, compile=False, cuda_graphs=False, **length)
    scores = {best: score(best)}
    names = {name for stage in STAGES for values in stage for name in values} - set(fixed)
    for stage in STAGES:
        others = ({name: value for name, value in values.items() if name in names} for values in stage)
        for config in [replace(best, **values) for values in others]:  # type: ignore[arg-type]
            if config not in scores:
                scores[config] = score(config)
        best = max(scores, key=lambda config: scores[config])
    reason = f"right after {best.steps} steps: {100 * scores[best]:.1f} % of some training images, by others"
    if len(scores) > 1:
        rest = sorted(figure for config, figure in scores.items() if config is not best)
        reason += f"; with other views {', '.join(f'{100 * figure:.1f}' for figure in rest)} %"
    return resolved.derive(reason, **{name: getattr(best, name) for name in sorted(names)})
