"""Whether a command goes on with the run in its directory, and with which options."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mocokit import distributed
from mocokit.auto.defaults import check_shares
from mocokit.config import FIELDS, PretrainConfig, deciding
from mocokit.console import say
from mocokit.deploy.encoder_file import read_encoder
from mocokit.errors import UserError
from mocokit.files import write_text
from mocokit.machine import computes_in_bf16, pick_device, usable_cores, versions
from mocokit.resolved import Resolved, differences, dump, moves
from mocokit.rundir import RunDirectory, free_name
from mocokit.runs.extend import check_extends, how_to_extend
from mocokit.runs.request import Request


def saved_configuration(
    run: RunDirectory,
    given: Mapping[str, Any],
    recipe: Mapping[str, Any],
    fingerprint: str,
    overwrite: bool,
    start: RunDirectory | None = None,
) -> Resolved | None:
    """The configuration of the run to resume, or None where there is none (any more). A run that extends another one
    goes on from the end of ``start``.

    Raises:
        UserError: the directory holds something else, or a run with other options or on images of another
            ``fingerprint``.
    """
    if run.is_empty() or (overwrite and run.config.exists()):
        return None
    if not run.config.exists():
        raise UserError(f"--out {run.path}: exists and is not a run directory; choose another --out")
    saved = run.read_config()
    same_images = run.read_fingerprint() == fingerprint
    if changed := differences(given, recipe, saved):
        if same_images and (way := how_to_extend(run, given, recipe, saved)):
            raise UserError(way)
        raise UserError(
            f"{run.path} holds a run with other options: {'; '.join(changed)}. Give another --out, "
            f"or --overwrite to replace it"
        )
    if not same_images:
        raise UserError(
            f"{run.path} holds a run on other images than {given['data']} has now (of all splits); give another --out, "
            f"such as {shlex.quote(str(free_name(run.path)))}, or --overwrite to replace it"
        )
    if start is not None and start.path != run.path:
        check_extends(saved, start, run)
    return saved


def has_encoder(run: RunDirectory) -> bool:
    """Whether the run has left an encoder that can be read; another is written from its checkpoint."""
    with suppress(UserError):
        read_encoder(run.encoder)
        return True
    return False


def on_its_device(saved: Resolved, given: Mapping[str, Any], run: RunDirectory) -> Resolved:
    """The configuration of a run that goes on; on another device what was chosen for the first one is chosen anew."""
    if not moves(given, saved):
        return saved
    before, device = saved.config, given["device"]
    follows = {
        "precision": "bf16" if device == "cuda" and computes_in_bf16(device) else "fp32",
        "compile": False,
        "cuda_graphs": False,
        "workers": max(1, usable_cores() // distributed.local_world_size()),
    }
    values = {name: given.get(name, value) for name, value in follows.items() if name in saved.reasons}
    changes = [f"{n} {v} (was {getattr(before, n)})" for n, v in values.items() if v != getattr(before, n)]
    say(f"{run.path}: goes on on {device} (was {before.device}): {', '.join(changes) or 'nothing else changes'}")
    return saved.derive(f"for {device}", device=device, **values)


def with_free_options(resolved: Resolved, request: Request) -> PretrainConfig:
    """The configuration; what does not change the result may differ from the run that is resumed."""
    as_opened = (*deciding("labels"), "split_by")
    free: dict[str, Any] = {name: request.said.get(name) for name in as_opened}
    free |= {name: value for name, value in request.given.items() if not FIELDS[name].identity}
    config = replace(resolved.config, **free)
    pick_device(config.device)
    if config.cuda_graphs and config.device != "cuda":
        raise UserError("--cuda-graphs needs --device cuda; give --no-cuda-graphs")
    check_shares(config, distributed.world_size())
    return config


def turned(run: RunDirectory, resolved: Resolved) -> Callable[[PretrainConfig], None]:
    """Keeps the length of a run that follows the clock in its configuration."""

    def keep(config: PretrainConfig) -> None:
        longer = {name: getattr(config, name) for name in ("steps", "epochs", "turns")}
        with run.writing():
            write_text(run.config, dump(replace(resolved, config=replace(resolved.config, **longer)), versions()))

    return keep
