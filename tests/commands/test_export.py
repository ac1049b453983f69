"""``mocokit export``: where files go, what is printed and refused. That they compute the same: tests/deploy."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import SafetensorError
from torch.testing import assert_close

import mocokit
from mocokit.cli import main
from mocokit.commands.export import export, synthetic_images
from mocokit.deploy import export_onnx, export_timm
from mocokit.errors import UserError
from tests.deploy.exporting import without
from tests.helpers import encode, noise, write_images
from tests.tiny_runs import TinyRun


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path) -> Path:
    """A copy of the finished run that may be written to."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return tmp_path / "run"


def test_timm(run, tmp_path, monkeypatch, capfd):
    assert main(["export", str(run), "--format", "timm", "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    result = json.loads(stdout)
    assert (result["path"], result["format"]) == (str(run / "export" / "timm"), "timm")
    assert 0 <= result["max_abs_diff"] < 1e-6
    assert json.loads((run / "results" / "export.json").read_text()) == result
    lines = stderr.partition("in Python:\n\n")[2]
    assert lines.count(f"local-dir:{run / 'export' / 'timm'}") + lines.count("model.safetensors") == 1
    (tmp_path / "image.jpg").write_bytes(encode(noise(0, 10, 13), "JPEG"))
    monkeypatch.chdir(tmp_path)
    printed: dict = {}
    exec(lines, printed)  # what is printed works as it stands
    assert_close(printed["features"], mocokit.load(run).embed("image.jpg"), rtol=1e-4, atol=1e-5)


def test_onnx(tiny_run: TinyRun, run, tmp_path, monkeypatch, capfd):
    """Checked on the user's own images; nothing of the exporter's is printed."""
    (tmp_path / "elsewhere").mkdir()
    encoder = shutil.copy(run / "encoder.safetensors", tmp_path / "elsewhere")  # the file without its run
    arguments = ["export", str(encoder), "--format", "onnx", "--data", str(tiny_run.data)]
    assert main([*arguments, "--output", str(tmp_path / "o"), "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    result = json.loads(stdout)
    assert (result["path"], result["format"]) == (str(tmp_path / "o" / "encoder.onnx"), "onnx")
    assert 0 < result["max_abs_diff"] < 1e-5
    assert result["data_fingerprint"]
    assert f"largest difference from PyTorch's outputs {result['max_abs_diff']:.1e}" in stderr
    _, heading, blank, *lines = stderr.splitlines()
    assert (heading, blank) == ("to use it in Python:", "")
    (tmp_path / "image.jpg").write_bytes(encode(noise(0, 10, 13), "JPEG"))
    monkeypatch.chdir(tmp_path)
    printed: dict = {}
    exec("\n".join(lines), printed)
    expected = mocokit.load(run).embed("image.jpg")
    assert_close(torch.from_numpy(printed["features"]), expected, rtol=1e-4, atol=1e-6)
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["encoder.safetensors"]
    session = onnxruntime.InferenceSession(result["path"])
    images = np.stack([noise(i, 10, 13) for i in range(5)])
    (features,) = session.run(None, {"images": images})
    assert_close(torch.from_numpy(features), mocokit.load(run).embed(images), rtol=1e-4, atol=1e-6)


def test_a_full_disk_is_one_line(run, monkeypatch, capfd):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(export_timm, "save_for_hf", full)
    assert main(["export", str(run), "--format", "timm"]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "No space left on device" in line
    assert "make room" in line
    assert not (run / "export").exists()


@pytest.mark.parametrize(("format", "name"), [("timm", "README.txt"), ("onnx", "encoder.onnx"), ("onnx", "README.txt")])
def test_nothing_is_overwritten_unasked(run, format, name, monkeypatch):
    monkeypatch.setattr(export_onnx, "export_onnx", lambda *_: 0.0)
    file = run / "export" / format / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UserError, match=rf"{name}: is already there; --overwrite replaces it, --output"):
        export(str(run), format=format)
    assert file.read_text() == "mine"
    export(str(run), format=format, overwrite=True)
    export(str(run), format=format, output=str(run / "other"))


def test_a_missing_package_is_told_before_anything_slow(tmp_path, monkeypatch):
    """Even before the run is looked at."""
    monkeypatch.setattr(export_onnx, "EXTRA", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"needs no_such_package; pip install 'mocokit\[onnx\]'"):
        export(str(tmp_path / "none"), format="onnx")


def test_timm_needs_no_onnx(run):
    script = f"from mocokit.cli import main; raise SystemExit(main(['export', {str(run)!r}, '--format', 'timm']))"
    without(export_onnx.EXTRA, script, run)
    assert (run / "export" / "timm" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coreml"}, "--format: 'coreml' is not one of timm, onnx"),
        ({"format": "timm", "data": "nowhere"}, "nowhere"),
        ({"format": "timm", "output": "run/config.yaml"}, "run/config.yaml is no folder; choose another --output"),
        ({"format": "timm", "output": "run/config.yaml/x"}, "config.yaml"),
    ],
)
def test_mistakes(run, options, message, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=message):
        export("run", **options)


def test_pictures_to_check_with_need_not_all_be_usable(run, tmp_path):
    pictures = write_images(tmp_path / "pictures", [f"{n}.png" for n in range(4)])
    for name in "abcdef":
        (pictures / f"{name}.png").write_bytes(b"no picture")
    assert export(str(run), format="timm", data=str(pictures))["max_abs_diff"] < 1e-3
    for path in pictures.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="pictures"):
        export(str(run), format="timm", data=str(pictures), overwrite=True)


def test_no_format(run, capfd):
    assert main(["export", str(run)]) == 2
    assert "no --format given" in capfd.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(run):
    (run / "export").mkdir(mode=0o500)
    with pytest.raises(UserError, match="export"):
        export(str(run), format="timm")


@pytest.mark.parametrize("channels", [1, 3])
def test_synthetic_images_are_smooth_and_not_alike(channels):
    images = synthetic_images(channels)
    assert (images.shape, images.dtype) == ((64, 72, 96, channels), np.uint8)
    assert np.abs(np.diff(images.astype(int), axis=1)).mean() < images.std() / 2
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64
