"""What each process of tests/training/test_several.py runs: ``python -m tests.training.several JOB.json``."""

import contextlib
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mocokit import distributed
from mocokit.auto.defaults import Facts, defaults
from mocokit.config import FIELDS
from mocokit.data.store import open_store
from mocokit.data.streaming import open_streaming
from mocokit.errors import Interrupted
from mocokit.model.encoder import encoder_spec
from mocokit.options import validate
from mocokit.rundir import RunDirectory
from mocokit.training import pretraining
from mocokit.training.loop import Trainer, create_fabric
from mocokit.training.pretraining import Pretraining
from tests.tiny_runs import TINY

V2 = TINY | {"batch_size": 24, "bn_splits": 6, "queue_size": 16, "steps": 3, "lr": 0.01, "head": "mlp"}
V3 = V2 | {"queue_size": 0, "bn_splits": 1, "head": "v3-vit", "symmetric": True, "temperature": 0.2}
# A batch wraps around the queue, of the third case within a half. The last has batch norm in its heads alone.
CASES = {
    "v2": V2,
    "v3": V3,
    "v2 symmetric": V2 | {"symmetric": True, "queue_size": 20},
    "v2 streamed": V2 | {"stream": True},
    "v3 vit": V3 | {"backbone": "vit_narrow", "image_size": 16},
}

SAVED = V2 | {"checkpoint_every": 0.0, "log_every": 1}


def train(
    data: str, out: Path, options: dict[str, Any], announce: Callable[[dict[str, Any]], None] = lambda row: None
) -> dict[str, dict[str, torch.Tensor]]:
    """A short run with the real trainer; the state of this process at its start and at its end."""
    sizes = {"image_size": options["image_size"], "workers": 0}
    if options.get("stream"):
        store, images = open_streaming(data, seed=0, max_skipped=0.05, **sizes)
    else:
        store = open_store(data, **sizes)
        images = store.splits["train"]
    facts = Facts("x", len(images), store.image_size, 8, 3, "cpu", False, 1, distributed.world_size())
    options = {name: value for name, value in options.items() if name != "epochs"}
    given = validate({"data": data, "out": str(out), "monitor_every": 0, **options}, FIELDS)
    config = replace(defaults(given, facts).config, monitor_every=0, histograms=False)
    module = Pretraining(config, encoder_spec(store, config))
    start = copy.deepcopy(module.state_dict())
    pretraining.train(module, images, RunDirectory(out), lambda encoder, step: {}, announce)
    return {"start": start, "end": module.state_dict()}


def interrupted(data: str, out: Path) -> None:
    """Leave a run whose checkpoint is at step 1."""

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise Interrupted("enough")

    with contextlib.suppress(Interrupted):
        train(data, out, SAVED, stop)


def shuffled_keys(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of a batch encoded across processes in another order, and without; batch norm is in evaluation mode."""
    store = open_store(data, image_size=8, workers=0)
    facts = Facts("x", len(store.splits["train"]), 8, 8, 3, "cpu", False, 1, distributed.world_size())
    config = defaults(validate({"data": data, **V2, "epochs": 1, "steps": 1}, FIELDS), facts).config
    moco = Pretraining(config, encoder_spec(store, config)).moco.eval()
    whole = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = whole[distributed.local_slice(24)]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    return moco.keys(x, order), moco.keys(x, None)


def kept_sums(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a checkpoint has of sums that differ by process, and what this process has afterwards."""
    store = open_store(data, image_size=8, workers=0)
    facts = Facts("x", len(store.splits["train"]), 8, 8, 3, "cpu", False, 1, distributed.world_size())
    config = defaults(validate({"data": data, **V2, "epochs": 1, "steps": 1}, FIELDS), facts).config
    trainer = Trainer(Pretraining(config, encoder_spec(store, config)), create_fabric("cpu", "fp32"))
    trainer.task.sums += torch.arange(5.0) * (distributed.rank() + 1)
    return trainer.state_dict()["task"]["sums"], trainer.task.sums.clone()


def main(job: dict[str, Any]) -> None:
    """Do the job in this process and leave the outcome where the test finds it."""
    torch.set_num_threads(1)
    distributed.init_process_group("cpu")
    folder = Path(job["out"]) / f"rank{distributed.rank()}"
    outcome: dict[str, Any] = {"keys": shuffled_keys(job["data"]), "sums": kept_sums(job["data"])}
    for name, options in CASES.items():
        outcome[name] = train(job["data"], Path(job["out"]) / name, options)
    if distributed.world_size() == 1:
        interrupted(job["data"], Path(job["out"]) / "interrupted")
    else:
        outcome["resumed"] = train(job["data"], Path(job["out"]) / "interrupted", SAVED)
    outcome["any"] = distributed.any_rank(distributed.rank() == 1, False)
    outcome["first"] = distributed.broadcast_object(distributed.rank())
    folder.mkdir(parents=True)
    torch.save(outcome, folder / "outcome.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
