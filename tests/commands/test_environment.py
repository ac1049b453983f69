"""The device that is chosen, and the versions that are noted."""

import pytest
from mocokit.commands.environment import pick_device, versions

import mocokit
from mocokit.errors import UserError


@pytest.mark.parametrize(
    ("cuda", "mps", "fastest"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_fastest_device_unless_another_is_named(cuda, mps, fastest, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert pick_device(None) == fastest
    assert pick_device("cpu") == "cpu"
    for name in {"cuda", "mps", "tpu"} - {fastest}:
        with pytest.raises(UserError, match=f"--device {name}: .* use --device cpu"):
            pick_device(name)


def test_versions_name_what_results_depend_on():
    noted = versions()
    assert noted["mocokit"] == mocokit.__version__
    assert {"python", "torch", "torchvision", "timm", "numpy"} <= set(noted)
