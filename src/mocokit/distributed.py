"""The processes that share a run: which one this is, and what they exchange.

A command that ``--devices``, torchrun or SLURM has started several times calls `init_process_group`; until then, and in
every other command, there is one process and everything here is free.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mocokit.console import say
from mocokit.errors import UserError, reason_of

T = TypeVar("T")
TIMEOUT = timedelta(hours=6)  # one process evaluates while the others wait; a dead one is noticed at once
SLURM_LOCAL_COUNT = "SLURM_NTASKS_PER_NODE"
SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
SLURM_SPECIAL_STEPS = 2**32 - 16  # from here on: batch script, interactive shell, ...
NO_PEER = ("gloo", "nccl", "connection", "socket", "store", "timed out")


def _environment(name: str) -> int | None:
    """What torchrun's variable ``name`` says, or that of SLURM's srun in its place."""
    value = os.environ.get(name)
    if value is None and _slurm_tasks() > 1 and _by_srun():
        value = os.environ.get(SLURM[name])
    return None if value is None else int(value)


def _slurm_tasks() -> int:
    tasks = os.environ.get("SLURM_NTASKS", "")
    return int(tasks) if tasks.isdecimal() else 1


def _by_srun() -> bool:
    """Whether SLURM's srun started this process; a batch script, which runs once, has a rank, too, but no such step."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in os.environ and step.isdecimal() and int(step) < SLURM_SPECIAL_STEPS


def _check_slurm() -> None:
    """Tell where SLURM was asked for several processes and this is one that it did not start; refuse a batch script."""
    tasks = _slurm_tasks()
    if tasks == 1 or "WORLD_SIZE" in os.environ or _by_srun():
        return
    told = f"SLURM_NTASKS is {tasks}, but srun did not start this process"
    way_out = "use srun, or unset SLURM_NTASKS"
    if "SLURM_PROCID" in os.environ:
        raise UserError(f"{told}; {way_out}")
    say(f"{told}, which runs alone; {way_out}")


def is_launched() -> bool:
    """Whether torchrun, SLURM or ``--devices`` started this process."""
    return (_environment("WORLD_SIZE") or 1) > 1


def init_process_group(device: str) -> None:
    """Meet the other processes of this run, if there are any; each takes the GPU of its local rank.

    Raises:
        UserError: the processes can't find each other, or in a SLURM job there is only one where several are meant.
    """
    _check_slurm()
    if not is_launched() or dist.is_initialized():
        return
    if device == "mps":
        raise UserError("--device mps: several processes need --device cpu or cuda")
    for name in SLURM:  # Lightning reads torchrun's names
        os.environ[name] = str(_environment(name))
    if SLURM_LOCAL_COUNT in os.environ:
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ[SLURM_LOCAL_COUNT])
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(f"{missing[0]} is not set; processes of one run need it to meet (docs/scaling.md)")
    if device == "cuda":
        if local_rank() >= (found := torch.cuda.device_count()):
            what = f"process {local_rank()} of this machine needs a GPU of its own and sees {found} in all"
            raise UserError(f"{what}; start {found} processes a machine, and let each see all of its GPUs")
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run can't meet: {reason_of(error)}") from None


def destroy_process_group() -> None:
    """Part from the others at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if is_launched() else 0


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


def local_slice(total: int) -> slice:
    """Which of the ``total`` rows of a batch are this process's; `world_size` divides ``total``."""
    each = total // world_size()
    return slice(rank() * each, (rank() + 1) * each)


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """The rows [b, ...] of every process, in the order of ranks: [count b, ...]. No gradient flows through it."""
    if world_size() == 1:
        return x
    whole = x.new_empty((world_size() * len(x), *x.shape[1:]))
    # Contiguous, for gloo and NCCL send memory as it lies, and channels-last images would come out scrambled.
    dist.all_gather_into_tensor(whole, x.contiguous())
    return whole


@torch.no_grad()
def shuffle_rows(x: Tensor, order: Tensor) -> Tensor:
    """Of all processes' rows [B, ...] in ``order``, a permutation [B] on the CPU, this process's share [b, ...].

    Each row goes to the one process that wants it, so what a process sends and gets is b rows at any `world_size`.
    """
    if world_size() == 1:
        return x[order.to(x.device, non_blocking=True)]
    b = len(x)
    sent = [wanted[wanted // b == rank()] - rank() * b for wanted in order.split(b)]
    holders = order[local_slice(len(order))] // b
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(
        received,
        x[torch.cat(sent).to(x.device, non_blocking=True)].contiguous(),
        torch.bincount(holders, minlength=world_size()).tolist(),
        [len(rows) for rows in sent],
    )
    # They arrive by sender, and of each sender in order.
    arrived = holders.argsort(stable=True).to(x.device, non_blocking=True)
    return torch.empty_like(received).index_copy_(0, arrived, received)


@torch.no_grad()
def all_reduce_mean_(tensors: list[Tensor]) -> None:
    """Replace float tensors by their means over all processes, with one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def any_rank(*flags: bool) -> list[bool]:
    """Of each flag, whether it is true in any process. Host memory only, so that no GPU is waited for."""
    if world_size() == 1:
        return list(flags)
    merged = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(merged, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in merged]


def broadcast_object(value: T) -> T:
    """The ``value`` that process 0 has; the others' is ignored."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def on_first(decide: Callable[[], Any]) -> Any:
    """What the first process decides, in all of them; what it refuses, all refuse."""
    decided, refusal = None, None
    if rank() == 0:
        try:
            decided = decide()
        except UserError as error:
            refusal = error
    decided, refusal = broadcast_object((decided, refusal))
    if refusal is not None:
        raise refusal
    return decided


def gather_objects(values: list[T]) -> list[T]:
    """The ``values`` of all processes, in the order of ranks."""
    if world_size() == 1:
        return values
    lists: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, values)
    return [value for part in lists for value in part]


@contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """The body runs in the first process of each machine, then in the others, which find what it has cached."""
    if local_rank() > 0 and world_size() > 1:
        any_rank(False)
    yield
    if local_rank() == 0 and world_size() > 1:
        any_rank(False)


@contextmanager
def reporting_lost_peers(remedy: str) -> Iterator[None]:
    """Inside, the loss of another process is a `UserError` of one line that ends in the ``remedy``."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() == 1 or not (
            isinstance(error, dist.DistError) or any(word in text.lower() for word in NO_PEER)
        ):
            raise
        raise UserError(f"process {rank()}: another process of this run has ended; {remedy}") from error
