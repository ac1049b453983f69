"""The ONNX export: ONNX Runtime alone computes from uint8 pixels what the encoder computes."""

import copy
import importlib.util
import json
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mocokit
from mocokit.deploy import export_onnx as module
from mocokit.deploy.export_onnx import export_onnx, require_onnx, using_lines
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder
from tests.deploy.exporting import CLASSES, make_encoder, photographs, without

ORIGIN = {"seed": 3, "recipe": "auto"}
ENCODERS = {
    "resnet18_narrow": ("resnet18_narrow", 16, 3, ()),
    "gray, 7/8 of the square": ("resnet18", 72, 1, ()),
    "fine-tuned": ("resnet18_narrow", 16, 3, CLASSES),
    "timm's own": ("resnet18_narrow", 24, 3, (), 0.95),
}


def run(file: Path, images: np.ndarray) -> list[np.ndarray]:
    """All outputs of the graph."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def expected(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    """Features by the way that evaluation goes."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        return encoder(pixels, torch.tensor([images.shape[1:3]] * len(images))).numpy()


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, tuple[Encoder, Path]]:
    folder = tmp_path_factory.mktemp("onnx")
    result = {}
    for name, (backbone, size, channels, *more) in ENCODERS.items():
        encoder, file = make_encoder(backbone, size, channels, *more), folder / f"{name[:4]}.onnx"
        difference = export_onnx(encoder, file, ORIGIN, photographs(size + 9, size + 4, channels))
        assert 0 < difference < 1e-3  # absolute
        result[name] = (encoder, file)
    return result


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("n", [1, 7, 64])
def test_photographs_give_the_encoders_features(exported, name, n):
    encoder, file = exported[name]
    size = encoder.spec.image_size
    for height, width in ((size, size), (2 * size + 1, size + 6), (size // 2, size // 3), (427, 640)):
        images = photographs(height, width, encoder.spec.channels, count=min(n, 6))
        images = images[np.arange(n if height < 400 else 1) % len(images)]
        found = run(file, images)[0]
        assert found.dtype == np.float32
        assert found.shape == (len(images), encoder.dim)
        close(found, expected(encoder, images))


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
def test_any_batch_and_any_size(exported, n, height, width, seed):
    """The filters of the graph are those of the views, to a single pixel."""
    encoder, file = exported["resnet18_narrow"]
    images = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    close(run(file, images)[0], expected(encoder, images))


def test_a_classifier_adds_probabilities(exported):
    encoder, file = exported["fine-tuned"]
    images = photographs(20, 30)
    features, probabilities = run(file, images)
    close(features, expected(encoder, images))
    np.testing.assert_allclose(probabilities, encoder.classify(images).numpy(), atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_onnxruntime_alone_gives_equal_features_of_a_jpeg(exported, tmp_path):
    """The printed lines, with neither mocokit nor PyTorch in reach."""
    script = ""
    for i, (encoder, file) in enumerate(exported.values()):
        size = encoder.spec.image_size
        image = photographs(3 * size, size + 7, encoder.spec.channels)[1]
        (tmp_path / str(i)).mkdir()
        Image.fromarray(image.squeeze()).save(tmp_path / str(i) / "image.jpg", quality=90)
        lines = using_lines(encoder, file.as_posix())
        script += f"import os; os.chdir({str(tmp_path / str(i))!r})\n{lines}numpy.save('y.npy', features)\n"
    without(("mocokit", "torch", "torchvision", "timm"), script, tmp_path)
    for i, (encoder, _) in enumerate(exported.values()):
        close(np.load(tmp_path / str(i) / "y.npy"), encoder.embed(tmp_path / str(i) / "image.jpg").numpy())


def test_what_the_file_says_of_itself(exported):
    encoder, file = exported["fine-tuned"]
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["spec"]) == json.loads(json.dumps(encoder.spec.to_dict()))
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert json.loads(facts["origin"]) == ORIGIN
    assert facts["mocokit"] == mocokit.__version__
    session = onnxruntime.InferenceSession(str(file))
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", "H", "W", 3])
    names = [(output.name, output.shape) for output in session.get_outputs()]
    assert names == [("features", ["N", encoder.dim]), ("probabilities", ["N", len(CLASSES)])]


def test_no_path_of_this_machine_is_in_the_file(exported):
    content = exported["resnet18_narrow"][1].read_bytes()
    for module_file in (mocokit.__file__, torch.__file__):
        assert str(Path(module_file).parent).encode() not in content


def test_a_graph_that_differs_is_not_written(exported, tmp_path, monkeypatch):
    """As if the exporter had changed a weight by a little."""
    encoder, file = exported["resnet18_narrow"]
    program = MagicMock(model_proto=onnx.load(file))
    monkeypatch.setattr(module, "_trace", lambda _: program)
    other = copy.deepcopy(encoder)
    export_onnx(other, tmp_path / "same.onnx", ORIGIN, photographs(20, 20))
    other.backbone.get_parameter("layer4.1.bn2.bias").data[5] += 1e-3
    with pytest.raises(RuntimeError, match="differs from PyTorch by"):
        export_onnx(other, tmp_path / "new" / "encoder.onnx", ORIGIN, photographs(20, 20))
    assert {p.name for p in tmp_path.iterdir()} == {"same.onnx", "README.txt"}


@pytest.mark.parametrize("missing", module.EXTRA)
def test_a_missing_package_is_named(missing, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError, match=rf"needs {missing}; pip install 'mocokit\[onnx\]'"):
        require_onnx()


def test_too_many_weights_for_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="do not fit into one ONNX file; use --format timm"):
        export_onnx(make_encoder("resnet18_narrow", 8), tmp_path / "encoder.onnx", ORIGIN, photographs(8, 8))


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "size"), [("vit_tiny_patch16_224", 224), ("convnext_atto", 32)])
def test_other_architectures(backbone, size, tmp_path):
    encoder = make_encoder(backbone, size)
    export_onnx(encoder, tmp_path / "encoder.onnx", ORIGIN, photographs(size, size + 9))
    images = photographs(size + 11, size - 5)
    close(run(tmp_path / "encoder.onnx", images)[0], expected(encoder, images))
