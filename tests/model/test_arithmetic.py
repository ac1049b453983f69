"""What is measured of operations is theirs, and what is kept comes back only on the same machine."""

import pytest
import torch
from torch import nn

from mocokit.model import arithmetic
from mocokit.model.arithmetic import KEPT, MOST_KEPT, keep, measure_pace, recall, shortest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path))
    return tmp_path


def test_the_largest_convolution_and_product_are_timed_in_both_precisions(monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4), nn.Linear(4, 4)
    ).train()
    ran = []
    monkeypatch.setattr(arithmetic, "_run", lambda module, x, precision: ran.append((module, len(x), precision)))
    times = iter(range(1000))
    monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: float(next(times)))
    pace = measure_pace(network, torch.zeros(2, 3, 8, 8))
    assert {(id(module), precision) for module, _, precision in ran} == {
        (id(network[i]), precision) for i in (1, 3) for precision in ("fp32", "bf16")
    }
    assert {images for _, images, _ in ran} == {arithmetic.IMAGES}
    assert pace == (0.5, 1.0)  # one tick of the clock for two images; every call takes one
    assert network.training
    assert not any(m._forward_hooks for m in network.modules())


def test_operations_run_in_the_precision_that_is_timed():
    assert arithmetic._run(nn.Linear(2, 2), torch.zeros(1, 2), "bf16").dtype == torch.bfloat16
    assert arithmetic._run(nn.Linear(2, 2), torch.zeros(1, 2), "fp32").dtype == torch.float32


def test_a_network_without_such_operations_has_no_gain():
    assert measure_pace(nn.Flatten(), torch.zeros(2, 3, 4, 4)).share == 1


def test_the_first_call_does_not_count(monkeypatch):
    clock = iter([0.0, 100.0, 100.0, 103.0, 103.0, 105.0, 105.0, 109.0])
    monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: next(clock))
    assert shortest(lambda: None) == 2


def test_what_is_kept_is_of_this_machine_torch_and_threads(monkeypatch):
    """Those that a command may have; that it gives way to others for a while changes nothing."""
    monkeypatch.setattr("mocokit.model.arithmetic.CORES.most", 0)
    assert recall("x") is None
    keep("x", {"fp32": 1.0})
    assert recall("x") == {"fp32": 1.0}
    assert recall("y") is None
    for name, other in (("cpu_name", lambda: "another"), ("torch.get_num_threads", lambda: 99)):
        with monkeypatch.context() as changed:
            changed.setattr(f"mocokit.model.arithmetic.{name}", other)
            assert recall("x") is None
    keep("z", 1)
    monkeypatch.setattr("mocokit.model.arithmetic.CORES.most", torch.get_num_threads())
    monkeypatch.setattr("mocokit.model.arithmetic.torch.get_num_threads", lambda: 99)
    assert recall("z") == 1
    with monkeypatch.context() as changed:
        changed.setattr(torch, "__version__", "99")
        assert recall("x") is None


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{", b"[" * 100_000])
def test_a_damaged_file_is_measured_again(cache, content):
    (cache / KEPT).write_bytes(content)
    assert recall("x") is None
    keep("x", 1)
    assert recall("x") == 1


def test_the_oldest_are_forgotten():
    for i in range(MOST_KEPT + 2):
        keep(str(i), i)
    assert [recall("0"), recall("1"), recall("2"), recall(str(MOST_KEPT + 1))] == [None, None, 2, MOST_KEPT + 1]


def test_where_nothing_can_be_written_nothing_is_kept(cache, monkeypatch):
    monkeypatch.setenv("MOCOKIT_CACHE", str(cache / KEPT / "below"))
    (cache / KEPT).write_text("{}")
    keep("x", 1)
    assert recall("x") is None
