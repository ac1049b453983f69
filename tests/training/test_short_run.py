"""A short run learns what the run of the same configuration would, and leaves nothing."""

import dataclasses

import torch

import mocokit
from mocokit.data.store import open_store
from mocokit.rundir import RunDirectory
from mocokit.training.short_run import train_briefly
from tests.tiny_runs import TINY, tiny_data


def test_it_ends_where_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = str(tiny_data(tmp_path))
    mocokit.pretrain(data, out="run", evaluate=False, **TINY)
    config = RunDirectory(tmp_path / "run").read_config().config
    encoder = mocokit.load("run")
    images = open_store(data, image_size=8, workers=0).splits["train"]
    files, state = sorted(tmp_path.rglob("*")), torch.get_rng_state()
    brief = train_briefly(config, encoder.spec, images)
    assert not brief.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in encoder.backbone.state_dict().items():
        assert torch.equal(brief.backbone.state_dict()[name], weight), name
    assert sorted(tmp_path.rglob("*")) == files
    other = train_briefly(dataclasses.replace(config, crop_min=0.9), encoder.spec, images)
    assert not torch.equal(next(other.parameters()), next(brief.parameters()))
