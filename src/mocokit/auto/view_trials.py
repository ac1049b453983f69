"""Colours and crops of the views, chosen by short runs; what it gains and costs is in docs/accuracy.md."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from mocokit.config import PretrainConfig
from mocokit.errors import UserError
from mocokit.resolved import Resolved

# What is tried beside what `defaults` says, in turn: first colours, then crops with the better colours.
STAGES: tuple[tuple[Mapping[str, float], ...], ...] = (
    ({"jitter_strength": 0.25, "gray_p": 0.0},),
    ({"crop_min": 0.15}, {"crop_min": 0.7}),
)
RUNS = 1 + sum(map(len, STAGES))  # at most
VIEW_OPTIONS = tuple(dict.fromkeys(name for stage in STAGES for values in stage for name in values))
SHARE, FEWEST_STEPS = 0.2, 100  # of the run's steps that each short run has (after a tenth they often err); at least


def choose_views(
    resolved: Resolved, fixed: Collection[str], steps: int, score: Callable[[PretrainConfig], float]
) -> Resolved:
    """The views whose short run scores best; of equal ones the first, which is what `defaults` says.

    Args:
        resolved: the configuration as it is without.
        fixed: names of the options that the user or a recipe set, which stay; if all, nothing is run.
        steps: of the whole run.
        score: of the encoder after the run of a configuration, the higher the better.

    Raises:
        UserError: the run is too short for short runs to say anything.
    """
    names = [name for name in VIEW_OPTIONS if name not in fixed]
    if not names:
        return resolved
    if SHARE * steps < FEWEST_STEPS:
        raise UserError(
            f"--choose-views: runs of {SHARE:.0%} of the steps choose, and this one has about {steps:,}; give it "
            f"{FEWEST_STEPS / SHARE:,.0f} or more, or leave it out"
        )
    length: dict[str, Any] = {"steps": int(SHARE * steps), "turns": None, "warmup_steps": 0}
    best = replace(resolved.config, compile=False, cuda_graphs=False, **length)
    scores = {best: score(best)}
    for stage in STAGES:
        others = ({name: value for name, value in values.items() if name in names} for values in stage)
        for config in [replace(best, **values) for values in others]:  # type: ignore[arg-type]
            if config not in scores:
                scores[config] = score(config)
        best = max(scores, key=lambda config: scores[config])
    tried = sorted(scores, key=lambda config: -scores[config])
    said = [f"{scores[config]:.1f} ({', '.join(f'{getattr(config, name):g}' for name in names)})" for config in tried]
    reason = f"LiDAR after {best.steps} steps, by {', '.join(names)}: {', '.join(said)}"
    return resolved.derive(reason, **{name: getattr(best, name) for name in names})
