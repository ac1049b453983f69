"""The complete configuration of a run that begins: what was asked for, and what is derived from images and machine."""

from mocokit import distributed
from mocokit.auto.defaults import Facts
from mocokit.auto.trials import complete
from mocokit.console import say
from mocokit.machine import computes_in_bf16, usable_cores
from mocokit.model.encoder import EncoderSpec
from mocokit.resolved import Resolved
from mocokit.runs.extend import describe
from mocokit.runs.measurements import RunMeasurements
from mocokit.runs.request import Request, RunData


def complete_config(request: Request, data: RunData, started: float, start: EncoderSpec | None = None) -> Resolved:
    """What the user did not say, decided in the first process for all; see `mocokit.auto`. ``start`` is the spec of
    the encoder to go on from."""
    store = data.store
    facts = Facts(
        name=data.name,
        images=len(data.images),
        image_size=store.image_size,
        longest=max(store.splits["train"].canvas),
        channels=store.channels,
        device=request.device,
        bf16=computes_in_bf16(request.device),
        cpus=max(1, usable_cores() // distributed.local_world_size()),
        processes=distributed.world_size(),
        weights=start.backbone if start else None,
    )
    measurements = RunMeasurements(store, data.images, start)
    resolved = complete(request.given, request.recipe, facts, measurements, started)
    return distributed.broadcast_object(resolved)


def tell_derived(resolved: Resolved) -> None:
    """Print what was derived, each with its reason, or how a run goes on from the one that it extends."""
    if resolved.extends:
        say(describe(resolved.config, resolved.extends))
        return
    say("what is not given is derived:")
    for name, reason in resolved.reasons.items():
        if reason != "default":
            say(f"  {name} = {getattr(resolved.config, name)}  ({reason})")
