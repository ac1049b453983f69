"""mocokit's side of `speed.py`: the commands that a user would run."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import torch
from speed_common import MEAN, STD, Result, Settings, StepClock, Stop, clusters, photographs, rate, settled

import mocokit

LONG = 20_000  # steps of a run of which only the beginning is timed, so that it is prepared like a long one
SHORT = 50  # the same where it is only to work


def _pretrain(s: Settings) -> tuple[StepClock, Any]:
    """The pretraining command, up to the last step that counts; its clock and its task."""
    from mocokit.training import pretraining

    clock, tasks = StepClock(s), []

    class ClockedTrainer(pretraining.Trainer):  # the runs that only choose have the plain one: they do not count
        def fit(self, loader: Any, *arguments: Any, **others: Any) -> Any:
            tasks.append(self.task)
            batches = loader.batches

            def clocked(start: int, stop: int) -> Iterator[Any]:
                for number, batch in enumerate(batches(start, stop)):
                    if number:
                        clock.on_end()
                    clock.on_start()
                    yield batch

            loader.batches = clocked
            return super().fit(loader, *arguments, **others)

    options: dict[str, Any] = {} if s.precision is None else {"precision": s.precision}
    if s.steps or s.untried:  # the peer checks nothing; the check of step 0 is no part of the pace
        options["monitor_every"] = 0
    if s.untried:
        options |= {"compile": False} | ({"precision": "fp32"} if s.device == "cpu" else {})
    with suppress(Stop), mock.patch.object(pretraining, "Trainer", ClockedTrainer):
        mocokit.pretrain(
            s.data,
            recipe="moco-v2-cifar10",
            out=f"{s.scratch}/run",
            overwrite=True,
            backbone=s.backbone,
            image_size=s.image_size,
            batch_size=s.batch_size,
            steps=LONG if s.fork else SHORT,
            device=s.device,
            workers=s.workers,
            **options,
        )
    return clock, tasks[0]


def first_step(s: Settings) -> Result:
    """Seconds from the command to the first training step."""
    import mocokit.commands.pretrain  # noqa: F401

    imported = time.time()
    clock, _ = _pretrain(s)
    return {"value": clock.first - s.started, "after_imports_s": clock.first - imported}


def pretrain(s: Settings) -> Result:
    """Images a second of pretraining, loader and views included."""
    clock, task = _pretrain(s)
    parameters = sum(p.numel() for p in task.moco.backbone.parameters())
    chosen = {name: getattr(task.config, name) for name in ("precision", "compile", "cuda_graphs")}
    return {"value": clock.pace(), "parameters": parameters} | chosen


def views(s: Settings) -> Result:
    """Views a second on one core, the drawing of parameters included."""
    from mocokit.data.augment import augment
    from mocokit.data.view_params import AUGMENTATIONS, sample_params

    torch.set_num_threads(1)
    images, generator = photographs(s), torch.Generator().manual_seed(0)
    sizes = torch.tensor(images.shape[-2:]).expand(len(images), 2)

    def call() -> None:
        params = sample_params(AUGMENTATIONS["v2"], sizes, 3, generator)
        augment(images, params, s.image_size, MEAN, STD)

    return {"value": rate(call, len(images), s)}


def embed(s: Settings) -> Result:
    """Images a second of ``mocokit embed``, the encoder loaded and the file written."""
    import numpy as np

    import mocokit.commands.embed  # the peer's imports do not count either

    path = f"{s.scratch}/ours.npy"
    begun = time.perf_counter()
    result = mocokit.embed(
        s.encoder,
        str(s.train),
        path,
        overwrite=True,
        device=s.device,
        batch_size=s.batch_size,
        workers=s.workers,
        precision=s.precision or "fp32",
    )
    seconds = time.perf_counter() - begun
    return {
        "value": result["rows"] / seconds,
        "norm": float(np.square(np.load(path)).mean()),
        "precision": s.precision or "fp32",
    }


def probe(s: Settings) -> Result:
    """Seconds of ``mocokit probe`` for the encoder, features included; images are decoded as part of it."""
    from mocokit.commands.inputs import open_inputs
    from mocokit.config import ProbeConfig

    config = ProbeConfig(run=s.encoder, data=s.data, device=s.device)
    begun = settled(s.device)
    open_inputs(config)
    decoded = settled(s.device) - begun
    result = mocokit.probe(s.encoder, s.data, device=s.device)["encoder"]
    return {"value": decoded + result["wall_s"], "top1": result["top1"], "decode_s": decoded}


def knn(s: Settings) -> Result:
    """Seconds of the weighted kNN."""
    from mocokit.evaluation.knn import Accuracy, knn_ranks

    features = clusters(s)
    begun = settled(s.device)
    accuracy = Accuracy.of(knn_ranks(*features, k=200, temperature=0.1), classes=10)
    return {"value": settled(s.device) - begun, "top1": accuracy.top1}
