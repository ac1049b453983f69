"""Encoders compiled for training: fewer passes over the activations, fewer calls a step."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from mocokit.console import say
from mocokit.errors import reason_of
from mocokit.model.moco import MoCo

RECOMPILE_LIMIT = 100  # past it they would silently run as they are


def compile_encoders(moco: MoCo, cuda_graphs: bool = False) -> None:
    """Compile both encoders when they are next called; modules, weights and their names stay as they are.

    Where the compiler fails (there is no C++ compiler, say) they run uncompiled, and the user is told so once.

    With ``cuda_graphs`` a GPU gets the kernels of an encoder in one launch. Then an encoder's outputs and gradients lie
    in memory that the next encoder called after a backward uses again. `MoCo` and the trainer keep neither so long.
    """
    import torch._dynamo  # takes a second

    torch._dynamo.config.suppress_errors = True
    # Both encoders count, at each size of views and in each precision, those of trials and earlier runs, too.
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    torch._logging.set_logs(all=logging.ERROR)  # what is suppressed, and notices to its programmers
    for encoder in (moco.encoder_q, moco.encoder_k):
        # One kernel for sums over rows and over columns: of split batch norm, torch 2.11 fails to make it.
        options = {"triton.cudagraphs": cuda_graphs, "triton.mix_order_reduction": False}
        encoder.compile(backend=_inductor, dynamic=False, options=options)


def forget_cuda_graphs() -> None:
    """Give the memory of all recorded graphs back to the GPU, and forget the code that they were recorded from.

    torch keeps that code for the next model of the same kind, where it would ask for graphs that are gone.
    """
    import gc

    import torch._dynamo
    from torch._inductor.cudagraph_trees import reset_cudagraph_trees

    torch._dynamo.reset()
    gc.collect()
    reset_cudagraph_trees()
    torch.cuda.empty_cache()


def _inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """torch's own compiler, that tells of its failure."""
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    try:
        # With its backward, which torch would compile when it is first called, where no failure is suppressed.
        with config.patch(force_non_lazy_backward_lowering=True):
            return compile_fx(graph, inputs, config_patches=options)  # type: ignore[return-value]
    except Exception as error:
        _tell(reason_of(error))
        raise


@functools.cache
def _tell(reason: str) -> None:
    say(f"the encoders run uncompiled: {reason}")
