"""Compiled encoders compute what the plain ones do, and those that can't be compiled go on without."""

import csv
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mocokit.model.moco import MoCo
from mocokit.model.norm import split_batch_norm
from mocokit.training import compilation
from mocokit.training.compilation import compile_encoders
from tests.runs import FLAGS, coloured_data, mocokit


def moco() -> MoCo:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    backbone = split_batch_norm(nn.Sequential(*layers), 2)
    return MoCo(backbone, nn.Linear(8, 8), nn.Identity(), dim=8, K=16, tau=0.2, symmetric=False)


def steps(model: MoCo, size: int = 9) -> list[Tensor]:
    """Losses and gradients of three steps, and all weights, statistics and keys after them."""
    generator, found = torch.Generator().manual_seed(1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        x1, x2 = torch.randn(2, 8, 3, size, size, generator=generator)
        ids, shuffle = torch.arange(8) + 8 * step, torch.randperm(8, generator=generator)
        loss = model(x1, x2, ids, shuffle, 0.9).loss
        optimizer.zero_grad()
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    return [*found, *model.state_dict().values()]


@pytest.mark.slow
def test_compiled_steps_are_the_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, compiled = moco(), moco()
    compile_encoders(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for found, expected in zip(steps(compiled), steps(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert list(tmp_path.rglob("*.so"))  # something was compiled
    torch._dynamo.reset()


def test_every_size_of_a_process_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials, several runs and views of several sizes share a process; torch gives up after eight by default."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "_inductor", backend)
    for size in range(5, 11):
        model = moco()
        compile_encoders(model)
        steps(model, size)
    assert len(compiled) == 12
    torch._dynamo.reset()


def losses(out: Path) -> list[str]:
    with (out / "metrics.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_without_a_compiler_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coloured_data(tmp_path / "data")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    for compile in ("false", "true"):
        flags = [
            *FLAGS,
            "--epochs=1",
            "--monitor-every=0",
            "--log-every=1",
            "--precision=fp32",
            f"--compile={compile}",
        ]
        done = mocokit("pretrain", data, "--out", tmp_path / compile, *flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("uncompiled") == (compile == "true")
        assert "Traceback" not in done.stderr
    plain, gone_on = losses(tmp_path / "false"), losses(tmp_path / "true")
    assert plain == gone_on
    assert any(itertools.chain.from_iterable(plain))
