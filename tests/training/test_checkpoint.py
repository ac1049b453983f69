"""Checkpoints: whole, only read as tensors and plain values, refused in one line if they are anything else."""

import errno
import os
import pickle
import signal
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.errors import Interrupted, UserError
from mocokit.training.checkpoint import DIGEST, Checkpoints, use_checkpoint


class Counter:
    """Something that can be saved."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.weight = step, torch.full((3,), float(step))

    def state_dict(self) -> dict:
        return {"step": self.step, "task": {"weight": self.weight}, "scheduler": {"last_lr": [0.1]}}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.weight = int(state["step"]), state["task"]["weight"]


def checkpoints(path, seconds=1e9) -> Checkpoints:
    return Checkpoints(path / "last.ckpt", seconds, lambda step: None)


def test_round_trip(tmp_path):
    checkpoints(tmp_path).save_if_due(Counter(7), last=True)
    restored = Counter()
    checkpoints(tmp_path).restore(restored)
    assert restored.step == 7
    assert torch.equal(restored.weight, torch.full((3,), 7.0))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_without_a_checkpoint_nothing_changes(tmp_path):
    counter = Counter(3)
    checkpoints(tmp_path).restore(counter)
    assert counter.step == 3


def test_a_checkpoint_is_used_whole_or_told_with_the_way_out(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match=r"last.ckpt: not a usable checkpoint \(No such file or directory\); find it"):
        use_checkpoint(path, lambda state: state["step"], "find it")
    checkpoints(tmp_path).save_if_due(Counter(7), last=True)
    assert use_checkpoint(path, lambda state: state["step"], "find it") == 7
    with (
        patch("pathlib.Path.open", side_effect=OSError(errno.EIO, "Input/output error")),
        pytest.raises(UserError, match=r"\(Input/output error\); run the same command again when it can be read$"),
    ):
        use_checkpoint(path, lambda state: state["step"], "start anew with --overwrite")


@pytest.mark.parametrize(("seconds", "last", "saved"), [(1e9, False, False), (1e9, True, True), (0.0, False, True)])
def test_saves_by_the_clock_and_at_the_end(tmp_path, seconds, last, saved):
    checkpoints(tmp_path, seconds).save_if_due(Counter(1), last)
    assert (tmp_path / "last.ckpt").exists() == saved


def test_what_is_not_worth_keeping_is_not_saved(tmp_path):
    def check(step: int) -> None:
        raise UserError(f"step {step} is broken")

    with pytest.raises(UserError, match="step 5 is broken"):
        Checkpoints(tmp_path / "last.ckpt", 0.0, check).save_if_due(Counter(5), last=True)
    assert not list(tmp_path.iterdir())


@settings(max_examples=60)
@given(st.data())
def test_damaged_files_are_one_line(tmp_path_factory, data):
    """Cut, or with bytes changed: a `UserError` and nothing used, or, where the bytes do not matter, what was saved."""
    folder = tmp_path_factory.mktemp("damage")
    checkpoints(folder).save_if_due(Counter(7), last=True)
    path = folder / "last.ckpt"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    counter, used, message = Counter(), 7, ""
    try:
        checkpoints(folder).restore(counter)
    except UserError as error:
        used, message = 0, str(error)
    assert "\n" not in message
    assert (counter.step, counter.weight.tolist()) == (used, [float(used)] * 3)


CHANGES = {
    "a part is gone": lambda state: state.pop("scheduler"),
    "another step": lambda state: state.update(step=-1),
    "another type": lambda state: state.update(step="7"),
    "another part": lambda state: state.update(version="9.9"),
    "one weight": lambda state: state["task"]["weight"].__setitem__(0, 7.5),
    "half precision": lambda state: state["task"].update(weight=state["task"]["weight"].half()),
    "another digest": lambda state: state.update({DIGEST: "0" * 32}),
    "no text as digest": lambda state: state.update({DIGEST: {}}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_checkpoint_is_not_used(tmp_path, change):
    checkpoints(tmp_path).save_if_due(Counter(7), last=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "last.ckpt")
    counter = Counter()
    with pytest.raises(UserError, match=r"its digest does not fit: .* was changed\); start anew with --overwrite"):
        checkpoints(tmp_path).restore(counter)
    assert counter.step == 0


@pytest.mark.parametrize("state", [Counter(7).state_dict(), [1, 2], "text", {}])
def test_without_a_digest_it_is_not_ours(tmp_path, state):
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="it has no digest"):
        checkpoints(tmp_path).restore(Counter())


def test_nothing_in_the_file_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save(Counter(7).state_dict() | {"task": Trap()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        checkpoints(tmp_path).restore(Counter())
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()  # the trap was armed


def test_signals_end_the_run_after_the_step_and_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    saving = checkpoints(tmp_path)
    with saving.catching_signals():
        saving.obey_signals(1, 9)
        signal.raise_signal(signal.SIGTERM)
        saving.save_if_due(Counter(2), last=False)
        with pytest.raises(Interrupted, match="stopped at step 2 of 9 by SIGTERM"):
            saving.obey_signals(2, 9)
        saving.obey_signals(9, 9)  # a complete run ends by itself
        with pytest.raises(Interrupted, match="at once by a second SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "last.ckpt").exists()
