"""What only a real GPU can show: the whole of training and evaluation there gives what a CPU gives."""

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mocokit
from mocokit.commands import pretrain as verb
from mocokit.data.dataset import Batch
from mocokit.data.loader import create_loader
from mocokit.data.store import open_store
from mocokit.errors import Interrupted
from mocokit.rundir import RunDirectory
from mocokit.training import compilation
from mocokit.training.log import read_rows
from mocokit.training.loop import Trainer, create_fabric
from mocokit.training.pretraining import Pretraining
from mocokit.training.timing import step_times
from tests.tiny_runs import TINY, TinyRun, coloured_data, tiny_data
from tests.training.test_pretraining import V2, V3_RESNET, V3_VIT, task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KINDS = [("resnet18_narrow", V2), ("resnet18_narrow", V2 | {"symmetric": True}),
         ("resnet18_narrow", V3_RESNET), ("vit_narrow", V3_VIT)]  # fmt: skip
STEPS = 6
ON_GPU: dict[str, Any] = {"device": "cuda", "workers": 0, "log_every": 1}


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """cuDNN's convolutions round float32 to ten bits by default, too coarse to compare with a CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


def trained(
    data: Path, backbone: str, options: dict[str, Any], device: str, steps: int = STEPS, **compiled: bool
) -> dict[str, Tensor]:
    """The model after some steps of the real loop, and the sums of their losses, similarities and gradients' norms."""
    images = open_store(str(data), image_size=16, workers=0).splits["train"]
    plain = task(backbone, 16, **{"steps": STEPS, "precision": "fp32"} | options)
    config = dataclasses.replace(plain.config, device=device, workers=0, **compiled)
    pretraining = Pretraining(config, plain.spec)
    loader = create_loader(images, batch_size=8, seed=0, device=torch.device(device), workers=0)
    Trainer(pretraining, create_fabric(device, config.precision)).fit(loader, steps)
    return {name: value.float().cpu() for name, value in pretraining.state_dict().items()}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all weights, statistics, keys and sums, relative to their size."""
    a, b = (torch.cat([state[name].flatten().double() for name in sorted(expected)]) for state in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("backbone", "options"), KINDS)
def test_steps_are_those_of_a_cpu(data, backbone, options):
    options = options | {"blur_p": 0.5, "blur_p2": 0.5, "solarize_p2": 0.3}
    # Optimizers that divide by a gradient's size blow up the rounding of those that are almost nothing.
    exact = options.get("optimizer", "sgd") == "sgd"
    there, here = (trained(data, backbone, options, device, STEPS if exact else 1) for device in ("cuda", "cpu"))
    torch.testing.assert_close(there["sums"], here["sums"], rtol=1e-3, atol=1e-3)
    assert distance(there, here) < (1e-3 if exact else 0.03)


@pytest.mark.parametrize(("backbone", "options"), KINDS)
def test_bfloat16_stays_near(data, backbone, options):
    full, half = (trained(data, backbone, options | {"precision": p}, "cuda", 2) for p in ("fp32", "bf16"))
    assert 0 < distance(half, full) < 0.1


@pytest.mark.parametrize("fits", [True, False])
def test_batches_are_those_of_a_cpu(data, fits, monkeypatch):
    """Whether the images live on the device or are brought there by worker processes."""
    monkeypatch.setattr("mocokit.data.loader.RESIDENT_SHARE", 0.5 if fits else 0.0)
    images = open_store(str(data), image_size=16, workers=0).splits["train"]

    def batches(device: str) -> list[Batch]:
        loader = create_loader(images, batch_size=8, seed=0, device=torch.device(device), workers=2)
        assert (loader.resident is not None) == (fits and device == "cuda")
        return list(loader.batches(1, 8))

    for there, here in zip(batches("cuda"), batches("cpu"), strict=True):
        assert there.images.is_cuda
        assert torch.equal(there.images.cpu(), here.images)
        assert torch.equal(there.ids.cpu(), here.ids)


def test_steps_are_timed(data):
    images = open_store(str(data), image_size=16, workers=0).splits["train"]
    plain = task("resnet18_narrow", 16, **V2)
    config = dataclasses.replace(plain.config, device="cuda", workers=0)
    assert all(0 < seconds < 1 for seconds in step_times(config, plain.spec, images, 0.2).values())


def losses(run: Path) -> list[float]:
    return [float(row["loss"]) for row in read_rows(run / "metrics.csv") if row["loss"]]


def test_a_stopped_run_goes_on(data, tmp_path, monkeypatch):
    options = TINY | ON_GPU | {"precision": "bf16", "compile": False}
    mocokit.pretrain(str(data), out=str(tmp_path / "whole"), **options)

    def stopping(row: dict[str, Any]) -> None:
        if row["step"] == 7:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(verb, "announcer", lambda config: stopping)
        with pytest.raises(Interrupted):
            mocokit.pretrain(str(data), out=str(tmp_path / "stopped"), **options)
    assert torch.load(RunDirectory(tmp_path / "stopped").checkpoint, weights_only=True)["step"] == 7
    mocokit.pretrain(str(data), out=str(tmp_path / "stopped"), **options)
    whole, stopped = losses(tmp_path / "whole"), losses(tmp_path / "stopped")
    assert len(whole) == len(stopped) == 15
    np.testing.assert_allclose(stopped, whole, rtol=0.02)  # sums on a GPU have no order


@pytest.fixture(scope="module")
def gpu_run(tmp_path_factory) -> TinyRun:
    """A run with everything that `auto` chooses on a GPU."""
    folder = tmp_path_factory.mktemp("run")
    data = coloured_data(folder / "data")
    names = ("image_size", "epochs", "batch_size", "queue_size", "backbone")
    options = {name: TINY[name] for name in names} | {"device": "cuda", "workers": 0}
    result = mocokit.pretrain(str(data), out=str(folder / "run"), **options)
    return TinyRun(data, folder / "run", result)


def test_auto_chooses_for_a_gpu(gpu_run):
    config = gpu_run.result["config"]
    assert config["precision"] == ("bf16" if torch.cuda.is_bf16_supported(False) else "fp32")
    assert gpu_run.result["knn"]["encoder"]["top1"] > 1 / 3


def test_embeddings_are_those_of_a_cpu(gpu_run, tmp_path):
    found = []
    for device in ("cuda", "cpu"):
        path = tmp_path / f"{device}.npy"
        mocokit.embed(str(gpu_run.path), str(gpu_run.data / "train"), str(path), device=device, precision="fp32")
        found.append(np.load(path))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_knn_and_probe_are_those_of_a_cpu(gpu_run):
    run, data = str(gpu_run.path), str(gpu_run.data)
    for verb_, slack in ((mocokit.knn, 0.05), (mocokit.probe, 0.1)):
        there, here = (verb_(run, data, device=device)["encoder"]["top1"] for device in ("cuda", "cpu"))
        assert there == pytest.approx(here, abs=slack)  # of 48 images


def test_fine_tuning(gpu_run, tmp_path):
    result = mocokit.finetune(
        str(gpu_run.path), str(gpu_run.data), out=str(tmp_path / "tuned"), device="cuda", epochs=2
    )
    assert result["encoder"]["top1"] > 1 / 3


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize(("backbone", "options"), KINDS[:1])  # the compiler takes 40 s for each
def test_compiled_steps_are_the_plain_ones(data, backbone, options, cuda_graphs, capfd):
    """And they are compiled, and recorded if they should be: what fails in it goes on without."""
    compilation._tell.cache_clear()
    counters = torch._dynamo.utils.counters["inductor"]
    skipped, recorded = (counters[f"cudagraph_{what}"] for what in ("skips", "recorded_non_static_inputs"))
    compiled = trained(data, backbone, options, "cuda", compile=True, cuda_graphs=cuda_graphs)
    assert distance(compiled, trained(data, backbone, options, "cuda")) < 1e-3
    assert "uncompiled" not in capfd.readouterr().err
    assert counters["cudagraph_skips"] == skipped
    assert (counters["cudagraph_recorded_non_static_inputs"] > recorded) == cuda_graphs
