"""The digest tells apart whatever differs, and stays what it is through a file."""

from collections import OrderedDict

import pytest
import torch

from mocokit.model.digest import digest

STATE = {"step": 3, "task": {"w": torch.arange(6.0).reshape(2, 3)}, "optimizer": [{"lr": 0.1, "betas": (0.9, 0.99)}]}


def with_version(version: int) -> OrderedDict:
    state = OrderedDict(w=torch.zeros(2))
    state._metadata = OrderedDict({"": {"version": version}})
    return state


@pytest.mark.parametrize(
    "other",
    [
        STATE | {"step": 4},
        STATE | {"step": 3.0},
        STATE | {"step": "3"},
        STATE | {"step": None},
        {name: STATE[name] for name in ("step", "task")},
        STATE | {"more": None},
        STATE | {"task": {"w": torch.arange(6.0).reshape(3, 2)}},
        STATE | {"task": {"w": torch.arange(6.0).reshape(2, 3).half()}},
        STATE | {"task": {"w": torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0))}},
        STATE | {"task": {"v": torch.arange(6.0).reshape(2, 3)}},
        STATE | {"optimizer": [{"lr": 0.1, "betas": [0.9, 0.99]}]},
        STATE | {"optimizer": ()},
    ],
)
def test_every_change_changes_it(other):
    assert digest(other) != digest(STATE)


def test_versions_of_a_state_dict_count():
    assert digest(with_version(1)) != digest(with_version(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_file_keeps_it(tmp_path, dtype, shape):
    state = with_version(2) | {"t": torch.ones(shape).to(dtype), "odd": "\udcff\n", "nan": float("nan")}
    torch.save([state, with_version(2)], tmp_path / "state.pt")
    assert digest(torch.load(tmp_path / "state.pt", weights_only=True)) == digest([state, with_version(2)])


def test_how_a_tensor_lies_in_memory_does_not_count():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert digest(tensor.T.contiguous().T) == digest(tensor)


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="a set where"):
        digest({"a": {1}})
