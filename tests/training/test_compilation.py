"""Compiled encoders compute what the plain ones do, and those that can't be compiled go on without."""

import csv
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import mocokit as package
from mocokit.data.store import open_store
from mocokit.model.moco import MoCo, MoCoV2
from mocokit.model.norm import split_batch_norm
from mocokit.rundir import RunDirectory
from mocokit.training import compilation
from mocokit.training.compilation import compile_encoders
from mocokit.training.pretraining import Pretraining, train
from tests.tiny_runs import FLAGS, TINY, coloured_data, mocokit, tiny_data
from tests.training.test_pretraining import V2, V3_RESNET, V3_VIT, task


def moco() -> MoCo:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    backbone = split_batch_norm(nn.Sequential(*layers), 2)
    return MoCoV2(backbone, nn.Linear(8, 8), nn.Identity(), dim=8, K=16, tau=0.2, symmetric=False)


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

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, bool]) -> torch.fx.GraphModule:
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


class GraphMemory:
    """Memory as CUDA graphs use it: what encoders gave, gradients too, is overwritten, here by NaN, when the next one
    is called and no backward is due."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []
        self.parameters: list[nn.Parameter] = []
        self.due = self.overwritten = 0

    def backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, bool]) -> Any:
        """In the place of torch's compiler."""
        assert options["triton.cudagraphs"]
        compilers = {
            "fw_compiler": lambda part, _: make_boxed_func(self._call(part, due=1)),
            "bw_compiler": lambda part, _: make_boxed_func(self._call(part, due=-1)),
            "inference_compiler": lambda part, _: make_boxed_func(self._call(part, due=0)),
        }
        return aot_autograd(**compilers)(graph, inputs)

    def _call(self, part: torch.fx.GraphModule, due: int) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            if due >= 0 and self.due == 0:
                self._overwrite()
            self.due += due
            outputs = part(*inputs)
            if due >= 0:  # of a backward they are the gradients of the parameters
                theirs = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, Tensor)}
                tensors = (x for x in outputs if isinstance(x, Tensor) and x.is_floating_point())
                self.given += [x.detach() for x in tensors if x.untyped_storage().data_ptr() not in theirs]
            return outputs

        return call

    def _overwrite(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        for tensor in [*self.given, *gradients]:
            tensor.fill_(torch.nan)
            self.overwritten += 1
        self.given = []


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch._dynamo.reset()
    made = GraphMemory()
    monkeypatch.setattr(compilation, "_inductor", made.backend)
    yield made
    torch._dynamo.reset()


def trained(pretraining: Pretraining, data: Path, out: Path) -> dict[str, Tensor]:
    """The model after all steps under the real trainer."""
    images = open_store(str(data), image_size=16, workers=0).splits["train"]
    train(pretraining, images, RunDirectory(out), lambda encoder, step: {})
    return pretraining.moco.state_dict()


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet18_narrow", V2),
        ("resnet18_narrow", V2 | {"symmetric": True}),
        ("resnet18_narrow", V3_RESNET | {"lr": 0.1}),  # at 1, rounding of one kind or another ends up far apart
        ("vit_narrow", V3_VIT),
    ],
)
def test_training_keeps_nothing_that_cuda_graphs_overwrite(memory, tmp_path, backbone, options):
    data = tiny_data(tmp_path)
    options = options | {"steps": 5, "log_every": 2, "workers": 0, "checkpoint_every": 0.0, "precision": "fp32"}
    plain = task(backbone, 16, **options)
    config = dataclasses.replace(plain.config, compile=True, cuda_graphs=True)
    graphs = Pretraining(config, plain.spec)
    memory.parameters = list(graphs.parameters())
    expected = trained(plain, data, tmp_path / "plain")
    found = trained(graphs, data, tmp_path / "graphs")
    assert memory.overwritten
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_forgotten_graphs_are_recorded_anew(memory, monkeypatch):
    """A trial's graphs are forgotten before the run, whose encoders look the same to torch."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, bool]) -> Any:
        compiled.append(graph)
        return memory.backend(graph, inputs, options)

    monkeypatch.setattr(compilation, "_inductor", backend)
    counts = []
    for _ in range(2):
        model = moco()
        memory.parameters = list(model.parameters())
        compile_encoders(model, cuda_graphs=True)
        model(*torch.randn(2, 8, 3, 9, 9), torch.arange(8), torch.arange(8), 0.9).loss.backward()
        counts.append(len(compiled))
        del model
        compilation.forget_cuda_graphs()
    assert counts == [2, 4]


def test_what_cuda_graphs_overwrite_is_noticed(memory):
    model = moco()
    memory.parameters = list(model.parameters())
    compile_encoders(model, cuda_graphs=True)
    x = torch.randn(8, 3, 9, 9)
    with torch.no_grad():
        key = model.encoder_k(x)
        model.encoder_k(x)
    assert key.isnan().all()  # kept too long
    for _ in range(2):
        model.encoder_q(x).square().mean().backward()
    assert all(p.grad.isnan().all() for p in model.encoder_q.parameters())  # of the first backward, added to


@pytest.mark.slow
def test_a_backward_that_cannot_be_compiled_is_told_like_a_forward(monkeypatch, capfd):
    from torch._inductor import compile_fx

    def failing(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no such kernel")

    torch._dynamo.reset()
    compilation._tell.cache_clear()
    monkeypatch.setattr(compile_fx, "compile_fx_backward", failing)
    plain, compiled = moco(), moco()
    compile_encoders(compiled)
    for found, expected in zip(steps(compiled), steps(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert "the encoders run uncompiled: no such kernel" in capfd.readouterr().err
    torch._dynamo.reset()


@pytest.mark.parametrize("at", [1, 9])  # the first step, and one after checkpoints
def test_a_run_whose_compiled_encoders_fail_goes_on_without(tmp_path, monkeypatch, capfd, at):
    """As when a CUDA graph can't be recorded: the step is half done, what it changed is thrown away."""
    data, calls = tiny_data(tmp_path), itertools.count(1)

    def failing(moco: MoCo, cuda_graphs: bool) -> None:
        forward = moco.encoder_q.forward

        def fail(x: Tensor) -> Tensor:
            if next(calls) == at:
                moco.queue.keys.zero_()
                raise torch.OutOfMemoryError("no room for graphs\nand more")
            return forward(x)

        moco.encoder_q.forward = fail

    monkeypatch.setattr("mocokit.training.pretraining.compile_encoders", failing)
    options = TINY | {"precision": "fp32", "threads": 1, "checkpoint_every": 0.0, "evaluate": False}
    plain, gone_on = tmp_path / "plain", tmp_path / "gone-on"
    package.pretrain(str(data), out=str(plain), compile=False, **options)
    assert "failed" not in capfd.readouterr().err
    result = package.pretrain(str(data), out=str(gone_on), compile=True, **options)
    assert "a compiled step failed (no room for graphs and more); the run goes on without" in capfd.readouterr().err
    assert not result["config"]["compile"]
    assert not RunDirectory(gone_on).read_config().config.compile
    found, expected = (load_file(run / "encoder.safetensors") for run in (gone_on, plain))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(gone_on) == losses(plain)


def losses(out: Path) -> list[str]:
    with (out / "metrics.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_without_a_compiler_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coloured_data(tmp_path / "data")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    for compile in ("no-compile", "compile"):
        flags = [*FLAGS, "--epochs=1", "--monitor-every=0", "--log-every=1", "--precision=fp32", f"--{compile}"]
        done = mocokit("pretrain", data, "--out", tmp_path / compile, *flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("uncompiled") == (compile == "compile")
        assert "Traceback" not in done.stderr
    plain, gone_on = losses(tmp_path / "no-compile"), losses(tmp_path / "compile")
    assert plain == gone_on
    assert any(itertools.chain.from_iterable(plain))
