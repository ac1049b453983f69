"""Precision and compilation are what is measured to be faster, where a run is long enough to measure."""

import time
from pathlib import Path

import pytest
import torch

from mocokit.commands import plan
from mocokit.commands.plan import make_plan
from mocokit.config import FIELDS, PretrainConfig
from mocokit.data.store import open_store
from mocokit.errors import UserError
from mocokit.options import validate
from tests.runs import TINY, tiny_data

GROWING = {"image_size": 16, "view_size": 8, "view_size_end": 12}


@pytest.mark.parametrize(
    ("half", "given", "expected", "why"),
    [
        (0.05, {"epochs": 400}, "bf16", "8 images: 50 ms a step in bf16, 100 ms in fp32"),
        (0.095, {"epochs": 400}, "fp32", "8 images: 95 ms a step in bf16, 100 ms in fp32"),
        (0.05, {"epochs": 3}, "fp32", "for cpu"),  # over before it pays
        (0.05, {"epochs": 400, "precision": "fp32"}, "fp32", None),  # the user's word
    ],
)
def test_precision(
    half: float,
    given: dict[str, object],
    expected: str,
    why: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(
        plan, "seconds_per_step", lambda config, *_: half if config.precision == "bf16" else 0.1
    )
    data = str(tiny_data(tmp_path))
    store = open_store(data, image_size=8, image_size_cap=8, workers=0)
    options = validate({"data": data, **TINY, **given}, FIELDS)
    resolved = make_plan(options, store, store.splits["train"], time.perf_counter())
    assert resolved.config.precision == expected
    assert resolved.reasons.get("precision") == why


@pytest.mark.parametrize(
    ("compiled", "given", "expected", "why"),
    [
        (0.05, {"epochs": 2000}, True, "50 ms a step compiled, 100 ms as it is"),
        (0.05, {"time_budget": "10m"}, True, "50 ms a step compiled, 100 ms as it is"),
        (0.095, {"epochs": 2000}, False, "95 ms a step compiled, 100 ms as it is"),
        (0.05, {"time_budget": "4m"}, False, "a short run"),  # over before it pays
        (
            0.05,
            GROWING | {"time_budget": "10m"},
            False,
            "a short run",
        ),  # two sizes, each of which takes a minute
        (0.05, GROWING | {"time_budget": "17m"}, True, "50 ms a step compiled, 100 ms as it is"),
        (0.05, {"steps": 1999}, False, "a short run"),
        (0.05, {"steps": 2500}, False, "a short run"),  # of 250 seconds
        (0.05, {"epochs": 2000, "compile": False}, False, None),  # the user's word
    ],
)
def test_compilation(
    compiled: float,
    given: dict[str, object],
    expected: bool,
    why: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "seconds_per_step", lambda config, *_: compiled if config.compile else 0.1)
    data = str(tiny_data(tmp_path))
    store = open_store(data, image_size=8, image_size_cap=8, workers=0)
    options = validate({"data": data, **TINY, "precision": "fp32", **given}, FIELDS)
    resolved = make_plan(options, store, store.splits["train"], time.perf_counter())
    assert resolved.config.compile is expected
    assert resolved.reasons.get("compile") == why


@pytest.mark.parametrize(
    ("compiled", "graphs", "given", "expected", "why"),
    [
        (0.05, 0.04, {}, (True, True), ", 40 ms compiled with CUDA graphs"),
        (0.05, 0.049, {}, (True, False), ", 49 ms compiled with CUDA graphs"),
        (0.05, 0.2, {}, (True, False), ", 200 ms compiled with CUDA graphs"),
        (
            0.091,
            0.08,
            {},
            (True, True),
            ", 80 ms compiled with CUDA graphs",
        ),  # the compiler alone would not do
        (0.091, 0.088, {}, (False, False), ", 88 ms compiled with CUDA graphs"),
        (
            0.05,
            RuntimeError("overwritten\nby a later run"),
            {},
            (True, False),
            "; no CUDA graphs: overwritten",
        ),
        (0.05, AssertionError(), {}, (True, False), "; no CUDA graphs: AssertionError"),
        (0.05, 0.04, {"cuda_graphs": False}, (True, False), ""),  # the user's word
    ],
)
def test_cuda_graphs(
    compiled: float,
    graphs: float | Exception,
    given: dict[str, object],
    expected: tuple[bool, bool],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tried beside compiled and plain steps; where they fail the run does without."""

    def seconds(config: PretrainConfig, *_: object) -> float:
        if config.cuda_graphs and isinstance(graphs, Exception):
            raise graphs
        return graphs if config.cuda_graphs else compiled if config.compile else 0.1

    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "pick_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(plan, "seconds_per_step", seconds)
    data = str(tiny_data(tmp_path))
    store = open_store(data, image_size=8, image_size_cap=8, workers=0)
    options = validate({"data": data, **TINY, "epochs": 2000, "device": "cuda", **given}, FIELDS)
    resolved = make_plan(options, store, store.splits["train"], time.perf_counter())
    assert (resolved.config.compile, resolved.config.cuda_graphs) == expected
    assert resolved.reasons["compile"] == f"{1000 * compiled:.0f} ms a step compiled, 100 ms as it is{why}"
    assert ("cuda_graphs" in resolved.reasons) == ("cuda_graphs" not in given)


def test_cuda_graphs_where_there_can_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    data = str(tiny_data(tmp_path))
    store = open_store(data, image_size=8, image_size_cap=8, workers=0)
    options = validate({"data": data, **TINY, "compile": True, "cuda_graphs": True}, FIELDS)
    with pytest.raises(UserError, match=r"--cuda-graphs needs .*--device cuda"):
        make_plan(options, store, store.splits["train"], time.perf_counter())


def test_precision_on_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real steps: both precisions are taken, and the reason tells of them."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16")
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "PRECISION_RUN", 0.0)
    monkeypatch.setattr(plan, "PRECISION_STEPS", 1)
    data = str(tiny_data(tmp_path))
    store = open_store(data, image_size=8, image_size_cap=8, workers=0)
    options = validate({"data": data, **TINY}, FIELDS)
    resolved = make_plan(options, store, store.splits["train"], time.perf_counter())
    assert "in bf16" in resolved.reasons["precision"]
    assert "in fp32" in resolved.reasons["precision"]


@pytest.mark.parametrize(
    ("backbone", "given", "expected"),
    [
        ("resnet18_narrow", {}, (16, 8, 12)),
        ("vit_narrow", {}, (16, 16, 16)),
        ("resnet18_narrow", {"view_size": 16}, (16, 16, 16)),
        ("vit_narrow", {"view_size": 8}, (16, 8, 12)),  # the user's word; training says what is wrong with it
    ],
)
def test_views_grow_if_the_backbone_bears_it(
    backbone: str,
    given: dict[str, object],
    expected: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    data = str(tiny_data(tmp_path, height=20, width=20))
    store = open_store(data, image_size=16, image_size_cap=16, workers=0)
    options = {"data": data, **TINY, "image_size": 16, "backbone": backbone, "precision": "fp32", **given}
    config = make_plan(validate(options, FIELDS), store, store.splits["train"], time.perf_counter()).config
    assert (config.image_size, config.view_size, config.view_size_end) == expected
