"""Which arithmetic this CPU is fast in: found out on a network's own operations, remembered for the next command."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mocokit
from mocokit.auto.trials import Pace
from mocokit.data.cache import cache_directory
from mocokit.errors import UserError
from mocokit.files import read_json, write_json
from mocokit.machine import CORES, cpu_name

IMAGES, REPEATS = 16, 3  # of an operation that is timed
KEPT, MOST_KEPT = "speeds.json", 200  # in the cache directory; entries


@torch.inference_mode()
def measure_pace(backbone: nn.Module, x: Tensor) -> Pace:
    """The pace of a ``backbone`` on the CPU on inputs such as ``x`` [B, C, S, S], in a tenth of a second or so."""
    seen: dict[type, tuple[int, nn.Module, Tensor]] = {}

    def note(module: nn.Linear | nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
        work = output.numel() * module.weight[0].numel()
        if work > seen.get(kind, (0,))[0]:
            seen[kind] = (work, module, inputs[0])

    training = backbone.training
    hooks = [m.register_forward_hook(note) for m in backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        backbone.eval()
        backbone(x)
        begun = time.perf_counter()
        backbone(x)
        seconds = (time.perf_counter() - begun) / len(x)
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    times = {"fp32": 0.0, "bf16": 0.0}
    for _, module, own in seen.values():
        inputs = own.repeat(-(-IMAGES // len(own)), *[1] * (own.ndim - 1))
        for precision in times:
            times[precision] += shortest(lambda p=precision, m=module, i=inputs: _run(m, i, p))  # type: ignore[misc]
    return Pace(seconds, times["bf16"] / times["fp32"] if times["fp32"] else 1.0)


def _run(module: nn.Module, x: Tensor, precision: str) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        result: Tensor = module(x)
        return result


def shortest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, of which the first is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def recall(what: str) -> Any:
    """What `keep` kept of ``what`` on this machine with these threads, this torch and mocokit; None if nothing."""
    return _read().get(_key(what))


def keep(what: str, value: Any) -> None:
    """Remember a measurement, a value that JSON holds; where nothing can be written it is measured again next time."""
    kept = _read()
    kept.pop(_key(what), None)
    recent = [*kept.items(), (_key(what), value)][-MOST_KEPT:]
    with contextlib.suppress(OSError, UserError):
        write_json(cache_directory() / KEPT, dict(recent))


def _read() -> dict[str, Any]:
    try:
        return read_json(cache_directory() / KEPT)
    except UserError:  # there is no place for a cache
        return {}


def _key(what: str) -> str:
    threads = CORES.most or torch.get_num_threads()  # of the command, not those that it has while others need the cores
    return f"{what}; {cpu_name()}, {threads} threads, torch {torch.__version__}, mocokit {mocokit.__version__}"
