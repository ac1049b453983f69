"""Several real processes over gloo: they agree bit for bit, and come to what one process comes to."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_runs import free_port, meeting, tiny_data
from tests.training.several import CASES

ROOT = Path(__file__).parents[2]


def outcomes(count: int, data: Path, out: Path) -> list[dict]:
    """What each of ``count`` processes came to."""
    job = json.dumps({"data": str(data), "out": str(out)})
    started, port = [], free_port()
    for rank in range(count):
        environment = meeting(count, rank, port)
        command = [sys.executable, "-m", "tests.training.several", job]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    return [torch.load(out / f"rank{rank}" / "outcome.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def alone_in(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("one")


@pytest.fixture(scope="module")
def alone(data, alone_in) -> dict:
    return outcomes(1, data, alone_in)[0]


@pytest.fixture(scope="module", params=[2, 3])
def together(request, data, alone, alone_in, tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("many")
    shutil.copytree(alone_in / "interrupted", out / "interrupted")
    return outcomes(request.param, data, out)


@pytest.mark.parametrize("case", CASES)
def test_all_processes_end_with_the_same_weights_statistics_and_queue(together, case):
    first, *others = (outcome[case]["end"] for outcome in together)
    for other in others:
        assert first.keys() == other.keys()
        for name, value in first.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("case", CASES)
def test_processes_with_a_share_each_equal_one_process_with_the_batch(alone, together, case):
    assert_same_training(alone[case]["start"], alone[case]["end"], together[0][case]["end"])


def test_several_processes_go_on_from_the_checkpoint_of_one(alone, together):
    assert_same_training(alone["v2"]["start"], alone["v2"]["end"], together[0]["resumed"]["end"])


def test_a_checkpoint_has_the_means_of_what_processes_add_up(together):
    """All go on from the first one's, so that each with its own would count that twice."""
    own = [outcome["sums"][1] for outcome in together]
    assert [sums.tolist() for sums in own] == [(torch.arange(5.0) * n).tolist() for n in range(1, len(own) + 1)]
    for outcome in together:
        torch.testing.assert_close(outcome["sums"][0], torch.stack(own).mean(0))


def assert_same_training(start: dict, one: dict, many: dict) -> None:
    assert one.keys() == many.keys()
    for name, value in one.items():
        if not value.is_floating_point():
            assert torch.equal(value, many[name]), name
    # Rounding grows with every step, so the measure is how far training has come.
    names = [name for name, value in one.items() if value.is_floating_point() and "window" not in name]
    end, other, begun = (torch.cat([state[name].flatten() for name in names]) for state in (one, many, start))
    assert (end - other).norm() < 2e-3 * (end - begun).norm()


def test_shuffling_across_processes_is_undone_exactly(alone, together):
    for outcome in together:
        shuffled, plain = outcome["keys"]
        torch.testing.assert_close(shuffled, plain, rtol=0, atol=1e-6)
        torch.testing.assert_close(plain, alone["keys"][1], rtol=0, atol=1e-6)


def test_processes_tell_each_other_what_they_must(together):
    for outcome in together:
        assert outcome["any"] == [True, False]
        assert outcome["first"] == 0
