"""What processes exchange, on two real gloo processes, and what all of it is in a single one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mocokit import distributed
from mocokit.errors import UserError
from tests.tiny_runs import free_port, meeting

PROGRAM = """
import json, sys
import torch
from torch import nn
from mocokit import distributed
from mocokit.errors import UserError
from mocokit.model.norm import sync_batch_norm

distributed.init_process_group("cpu")
rank, world = distributed.rank(), distributed.world_size()
x = torch.arange(12.0).view(6, 2)
own = x[distributed.local_slice(6)]
order = torch.tensor([5, 0, 3, 1, 4, 2])
mean = [torch.tensor([float(rank)]), torch.tensor([[2.0 * rank, 1.0]])]
distributed.all_reduce_mean_(mean)

torch.manual_seed(0)
images = torch.randn(6, 3, 4, 4, requires_grad=True)
norm = sync_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), "cpu")
part = distributed.local_slice(6)
target = torch.randn(6, 3, 4, 4)
for _ in range(2):
    y = norm(images[part] + 1000)
(y * target[part]).sum().backward()
weight = norm[0].weight.grad.clone()
torch.distributed.all_reduce(weight)
gradient = images.grad.clone()
torch.distributed.all_reduce(gradient)

def refused():
    try:
        return distributed.on_first(lambda: int("not a number") if rank else refuse())
    except UserError as error:
        return str(error)

def refuse():
    raise UserError("no")

print(json.dumps({
    "gathered": distributed.all_gather(own).tolist(),
    "shuffled": distributed.all_gather(distributed.shuffle_rows(own, order)).tolist(),
    "mean": [t.tolist() for t in mean],
    "any": distributed.any_rank(rank == 1, False),
    "first": distributed.broadcast_object({"rank": rank}),
    "on first": distributed.on_first(lambda: rank),
    "refused": refused(),
    "objects": distributed.gather_objects([rank, -rank]),
    "norm": {
        "gradient": gradient.tolist(), "weight": weight.tolist(),
        "mean": norm[0].running_mean.tolist(), "var": norm[0].running_var.tolist(),
    },
}))
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def outcomes() -> list[dict]:
    port, root = free_port(), Path(__file__).parents[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=meeting(2, rank, port), cwd=root, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    return [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in started]


def test_rows_are_gathered_and_shuffled_in_order(outcomes):
    x = torch.arange(12.0).view(6, 2)
    for outcome in outcomes:
        assert outcome["gathered"] == x.tolist()
        assert outcome["shuffled"] == x[torch.tensor([5, 0, 3, 1, 4, 2])].tolist()


def test_means_flags_and_objects(outcomes):
    for outcome in outcomes:
        assert outcome["mean"] == [[0.5], [[1.0, 1.0]]]
        assert outcome["any"] == [True, False]
        assert outcome["first"] == {"rank": 0}
        assert (outcome["on first"], outcome["refused"]) == (0, "no")  # nobody else is asked
        assert outcome["objects"] == [0, 0, 1, -1]


def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(outcomes):
    """Outputs by their gradients, and the statistics, also of values far from zero."""
    torch.manual_seed(0)
    images = torch.randn(6, 3, 4, 4, requires_grad=True)
    norm, target = torch.nn.BatchNorm2d(3), torch.randn(6, 3, 4, 4)
    for _ in range(2):
        y = norm(images + 1000)
    (y * target).sum().backward()
    for outcome in outcomes:
        found = {name: torch.tensor(value) for name, value in outcome["norm"].items()}
        torch.testing.assert_close(found["gradient"], images.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found["weight"], norm.weight.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found["mean"], norm.running_mean, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(found["var"], norm.running_var, rtol=1e-3, atol=1e-3)


def test_alone_everything_is_free():
    x = torch.randn(6, 2)
    assert distributed.all_gather(x) is x
    assert distributed.local_slice(6) == slice(0, 6)
    assert (distributed.rank(), distributed.world_size(), distributed.local_world_size()) == (0, 1, 1)
    assert distributed.any_rank(True, False) == [True, False]
    assert distributed.broadcast_object(x) is x
    assert distributed.gather_objects([1]) == [1]


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_processes_that_cannot_meet_are_told_what_is_missing(monkeypatch, missing):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=f"{missing} is not set"):
        distributed.init_process_group("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"process 2 of this machine .* sees 2 in all; start 2 processes a machine"):
        distributed.init_process_group("cuda")


def test_other_errors_than_lost_peers_pass():
    with pytest.raises(RuntimeError, match="connection"), distributed.reporting_lost_peers("try again"):
        raise RuntimeError("connection lost")  # a single process has no peers to lose


SRUN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
OF_STEPS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", *SRUN)


@pytest.mark.parametrize(
    ("variables", "refusal", "told"),
    [
        (SRUN, "MASTER_ADDR is not set", ""),  # by srun: one of two
        ({"SLURM_NTASKS": "2"}, None, "SLURM_NTASKS is 2, but srun did not start this process, which runs alone"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "srun did not start this process; use srun, or unset", ""),
        (SRUN | {"SLURM_STEP_ID": "4294967291"}, "use srun, or unset SLURM_NTASKS", ""),  # of the batch script
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None, ""),
        ({"SLURM_NTASKS": ""}, None, ""),
    ],
)
def test_slurm_without_srun(monkeypatch, capfd, variables, refusal, told):
    for name in OF_STEPS:
        monkeypatch.setenv(name, "")  # so that what the call itself sets is taken back, too
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refusal:
        with pytest.raises(UserError, match=refusal):
            distributed.init_process_group("cpu")
    else:
        distributed.init_process_group("cpu")
        assert not distributed.is_launched()
    err = capfd.readouterr().err
    assert err.startswith(told)
    assert err.count("\n") == bool(told)
