"""``pretrain --extend``: a finished run goes on to more epochs, as a new run beside it; the old one stays as it is.

The new run has the old one's options and starts from its last checkpoint; its schedule starts again (warm restart).
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mocokit.config import PretrainConfig
from mocokit.errors import UserError
from mocokit.files import replacing
from mocokit.options import LENGTHS
from mocokit.resolved import Extends, Resolved, differences
from mocokit.rundir import RunDirectory
from mocokit.training.checkpoint import use_checkpoint


def extended_run(source: RunDirectory, given: Mapping[str, Any]) -> RunDirectory:
    """Where the run goes that extends ``source``: named after it and the length, so that the same command finds it.

    Raises:
        UserError: there is no run to extend, no length is given, or something else is in that place.
    """
    if source.is_empty() or not source.config.exists():
        raise UserError(f"--extend: {source.path} holds no run to extend; leave --extend out to begin one")
    run = _beside(source, given)
    if run is None:
        epochs = source.read_config().config.epochs
        raise UserError(f"--extend goes by --epochs or --steps; {source.path} has {epochs} epochs, give more than that")
    if not run.is_empty() and not run.config.exists():
        raise UserError(f"--extend: {run.path} is in the way and not a run directory; move it, or give more --epochs")
    return run


def _beside(source: RunDirectory, given: Mapping[str, Any]) -> RunDirectory | None:
    path = source.path if source.path.name not in ("", "..") else source.path.resolve()
    return next((RunDirectory(Path(f"{path}-{given[n]}-{n}")) for n in ("epochs", "steps") if n in given), None)


def how_to_extend(
    run: RunDirectory, given: Mapping[str, Any], recipe: Mapping[str, Any], saved: Resolved
) -> str | None:
    """What to tell who asks for more of a finished run and nothing else; None if it is anything else."""
    if not run.encoder.exists() or differences(given, recipe, saved, but=LENGTHS):
        return None
    epochs, steps = saved.config.epochs, saved.config.steps
    if "time_budget" in given:
        way = f"to go on from there add --extend and give --epochs above {epochs} in place of --time-budget"
    elif given.get("epochs", 0) > epochs or given.get("steps", 0) > steps:
        beside = _beside(run, given)
        assert beside is not None
        way = f"add --extend to go on to {given.get('epochs') or given['steps']:,} from there, in {beside.path}"
    else:
        return None
    length = f"{steps:,} steps" if "steps" in given else f"{epochs} epochs"
    return f"{run.path} is finished at {length}; {way}, or give another --out, or --overwrite, to start anew"


def extended_configuration(
    source: RunDirectory, given: Mapping[str, Any], recipe: Mapping[str, Any], fingerprint: str, images: int
) -> Resolved:
    """The configuration of ``source``, for more epochs or steps on its ``images``, and where these begin.

    Raises:
        UserError: ``source`` has other options or images, is not finished, is no shorter, or its checkpoint is damaged.
    """
    saved = source.read_config()
    config = saved.config
    if changed := differences(given, recipe, saved, but=LENGTHS):
        raise UserError(
            f"{source.path} holds a run with other options: {'; '.join(changed)}. --extend goes on with the run's own; "
            f"leave it out and give another --out for a new run"
        )
    if source.read_fingerprint() != fingerprint:
        raise UserError(
            f"{source.path} holds a run on other images than {given['data']} has now, so it can't be extended; leave "
            f"--extend out and give another --out for a new run"
        )
    longer = _longer(saved, given, max(1, images // config.batch_size))
    if longer.config.steps <= config.steps:
        raise UserError(
            f"{source.path} has {config.epochs} epochs ({config.steps:,} steps); --extend goes on to more: "
            f"give --epochs above {config.epochs}"
        )
    if not source.encoder.exists():
        raise UserError(f"{source.path} is not finished; run the command that began it to its end, then extend it")
    _check_start(source, config.steps)
    extends = Extends(str(source.path), config.steps)
    return replace(longer.derive(f"--extend of {source.path}", out=given["out"]), extends=extends)


def _longer(saved: Resolved, given: Mapping[str, Any], per_epoch: int) -> Resolved:
    """With the epochs or steps that are given, in the place of any time budget; the other of the two follows."""
    if "epochs" in given:
        steps = given["epochs"] * per_epoch
        longer = saved.derive(f"{given['epochs']} epochs of {per_epoch} steps", epochs=given["epochs"], steps=steps)
    else:
        longer = saved.derive("from --steps", steps=given["steps"], epochs=math.ceil(given["steps"] / per_epoch))
    longer = longer.derive("default", time_budget=None, turns=None)
    return replace(longer, reasons={n: reason for n, reason in longer.reasons.items() if n not in given})


def check_extends(saved: Resolved, source: RunDirectory, run: RunDirectory) -> None:
    """Refuse to go on with a run that has the options of the extended one but began elsewhere."""
    if saved.extends is None or saved.extends.step != source.read_config().config.steps:
        raise UserError(f"{run.path} holds a run that does not start where {source.path} ends; --overwrite replaces it")


def _check_start(source: RunDirectory, step: int) -> None:
    """Refuse a last checkpoint that is missing, damaged, or not of ``step``."""

    def check(state: dict[str, Any]) -> None:
        if state["step"] != step:
            raise ValueError(f"it is of step {state['step']}, the run ended at {step}")

    way_out = f"{source.path} can't be extended; leave --extend out and give another --out to train from the start"
    use_checkpoint(source.checkpoint, check, way_out)


def take_over(run: RunDirectory, extends: Extends | None) -> None:
    """Copy the rows and, last, the checkpoint of a run that is extended, unless ``run`` has one of its own by now.

    Raises:
        UserError: that run is gone or another by now, or the disk is full.
    """
    if extends is None or run.checkpoint.exists():
        return
    source = RunDirectory(Path(extends.run))
    _check_start(source, extends.step)
    with run.writing():
        for old, new in ((source.metrics, run.metrics), (source.checkpoint, run.checkpoint)):
            if old.exists():
                with replacing(new) as temporary:
                    shutil.copyfile(old, temporary)


def describe(config: PretrainConfig, extends: Extends) -> str:
    """What starts again, and what goes on as it was."""
    warmup = f" after {config.warmup_steps:,} steps of warm-up" if config.warmup_steps else ""
    momentum, end = config.momentum, config.momentum_end
    return (
        f"{config.out}: goes on from step {extends.step:,}, the end of {extends.run}, to step {config.steps:,} (epoch "
        f"{config.epochs}); the schedule starts again (warm restart): learning rate {config.lr:g}{warmup}"
        + (f", momentum {momentum:g} to {end:g}" if momentum != end else "")
        + (f"; views stay at {config.view_size_end} pixels" if config.view_size != config.view_size_end else "")
    )
