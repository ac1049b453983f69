"""What `speed.py` holds mocokit against: the part of the work that nobody can leave out, and nothing else."""

import contextlib
import io
import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image
from speed_common import Result, Settings, clusters, photographs, rate, settled


def _decode(files: list[Path]) -> int:
    for file in files:
        Image.open(io.BytesIO(file.read_bytes())).convert("RGB").load()
    return len(files)


def decode(s: Settings) -> Result:
    """Seconds to read and decode each file once, training and test, on all cores."""
    files = sorted(path for path in Path(s.data).rglob("*") if path.is_file())
    chunks = [files[start : start + 256] for start in range(0, len(files), 256)]
    if not s.fork:
        begun = time.perf_counter()
        return {"value": (sum(map(_decode, chunks)) and time.perf_counter()) - begun}
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.map(_decode, [files[:8]] * (os.cpu_count() or 1))  # started, and Pillow imported
        begun = time.perf_counter()
        pool.map(_decode, chunks, chunksize=1)
        return {"value": time.perf_counter() - begun}


def _model(s: Settings) -> torch.nn.Module:
    from mocokit.model.backbones import create_backbone

    return create_backbone(s.backbone, 3, s.image_size).to(s.device, memory_format=torch.channels_last)


def _random(s: Settings) -> torch.Tensor:
    x = torch.randn(s.batch_size, 3, s.image_size, s.image_size, device=s.device)
    return x.contiguous(memory_format=torch.channels_last)


def _autocast(s: Settings) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(s.device, torch.bfloat16, enabled=s.precision == "bf16")


def train(s: Settings) -> Result:
    """Images a second of the bare network: forward, backward and the forward of the keys, on random tensors."""
    model, x = _model(s), _random(s)

    def call() -> None:
        with _autocast(s):
            loss = model(x).float().square().mean()
            with torch.no_grad():
                model(x)
        model.zero_grad()
        loss.backward()

    return {"value": rate(call, s.batch_size, s), "precision": s.precision}


@torch.inference_mode()
def infer(s: Settings) -> Result:
    """Images a second of the bare network's forward on random tensors."""
    model, x = _model(s).eval(), _random(s)
    with _autocast(s):
        return {"value": rate(lambda: model(x), s.batch_size, s), "precision": s.precision}


@torch.inference_mode()
def one_pass(s: Settings) -> Result:
    """Views a second where a view is one pass over the image: uint8 read, float32 written."""
    torch.set_num_threads(1)
    images = photographs(s)
    return {"value": rate(lambda: images.float(), len(images), s)}


@torch.inference_mode()
def features_once(s: Settings) -> Result:
    """Seconds to encode every training and test image once, from random tensors."""
    pace = infer(s)["value"]
    return {"value": (s.images + s.queries) / pace}


@torch.inference_mode()
def gemm(s: Settings) -> Result:
    """Seconds of the similarities alone: one matrix product, in chunks that fit the memory."""
    bank, _, queries, _ = clusters(s)
    bank, out = bank.T.contiguous(), torch.empty(min(1000, len(queries)), len(bank), device=s.device)

    def product() -> None:
        for chunk in queries.split(len(out)):
            torch.mm(chunk, bank, out=out[: len(chunk)])

    return {"value": _once(product, s)}


def _once(call: Callable[[], None], s: Settings) -> float:
    begun = settled(s.device)
    call()
    return settled(s.device) - begun
