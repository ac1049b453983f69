"""The encoder file, and that ``embed`` makes of any kind of image what the evaluation makes of the stored one."""

import dataclasses
import io
import json
import math
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import mocokit
from mocokit.deploy.encoder_file import encoder_fingerprint, read_header, save_encoder
from mocokit.errors import UserError, refusing_damage
from mocokit.model.encoder import Encoder, EncoderSpec
from tests.encoders import ORIGIN, assert_close, spec
from tests.helpers import noise
from tests.tiny_runs import TinyRun

# The file ------------------------------------------------------------------------------------------------


def test_round_trip_is_exact(rgb, tmp_path):
    save_encoder(rgb, tmp_path / "encoder.safetensors", ORIGIN)
    for path in (tmp_path, tmp_path / "encoder.safetensors", str(tmp_path)):
        loaded = mocokit.load(path)
        assert loaded.spec == rgb.spec
        assert not loaded.training
        state = loaded.backbone.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in rgb.backbone.state_dict().items())
    images = [noise(i, 20, 30) for i in range(3)]
    assert torch.equal(mocokit.load(tmp_path).embed(images), rgb.embed(images))


def test_a_full_disk_is_an_error_of_the_file(rgb, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("mocokit.deploy.encoder_file.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_encoder(rgb, tmp_path / "encoder.safetensors", ORIGIN)
    assert caught.value.filename == str(tmp_path / "encoder.safetensors")
    assert not list(tmp_path.iterdir())


def test_weights_fit_timm_and_plain_batch_norm(tiny_run: TinyRun):
    """Keys are those of the bare timm model, though the run trained with split batch norm and a head."""
    import timm

    with safe_open(tiny_run.path / "encoder.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    timm.create_model("resnet18_narrow", num_classes=0).load_state_dict(weights)


def test_a_classifier_goes_with_its_encoder(tmp_path):
    classes = ("ant", "bee", "größte Wespe")
    encoder = Encoder.create(spec(3)).eval()
    encoder.classifier, encoder.classes = torch.nn.Linear(encoder.dim, 3), classes
    save_encoder(encoder, tmp_path / "encoder.safetensors", ORIGIN)
    loaded = mocokit.load(tmp_path)
    images = [noise(i, 20, 30) for i in range(4)]
    probabilities = loaded.classify(images)
    assert loaded.classes == classes
    assert torch.equal(probabilities, encoder.classify(images))
    assert_close(probabilities.sum(dim=1), torch.ones(4))
    logits = loaded.embed(images) @ encoder.classifier.weight.T + encoder.classifier.bias
    assert_close(probabilities, logits.detach().softmax(dim=1))


def test_without_a_classifier_there_are_no_probabilities(rgb):
    with pytest.raises(UserError, match="no classifier; train one with mocokit finetune"):
        rgb.classify([noise(0)])


@pytest.mark.parametrize("classes", ["[]", '["a", "b"]', "7", "not JSON", None])
def test_a_classifier_that_does_not_fit_is_one_line(tmp_path, classes):
    """Its weights have three rows: no other number of classes will do."""
    encoder = Encoder.create(spec(3))
    encoder.classifier, encoder.classes = torch.nn.Linear(encoder.dim, 3), ("a", "b", "c")
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path, ORIGIN)
    with safe_open(path, "pt") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header["classes"] = classes
    save_file(weights, path, {name: value for name, value in header.items() if value is not None})
    with pytest.raises(UserError, match="weights do not fit"):
        mocokit.load(path)


def test_header(tmp_path):
    deep = Encoder.create(spec(1, (12.5, 4095.0)))
    save_encoder(deep, tmp_path / "encoder.safetensors", ORIGIN)
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        header = file.metadata()
    assert header["format"] == "mocokit-encoder-4"
    assert json.loads(header["spec"]) == {
        "backbone": "resnet18_narrow",
        "image_size": 24,
        "channels": 1,
        "mean": [0.3],
        "std": [0.2],
        "intensity_range": [12.5, 4095.0],
        "zero_init_last": True,
        "crop": None,
        "interpolation": "bilinear",
    }
    assert json.loads(header["origin"]) == ORIGIN
    assert read_header(tmp_path) == (deep.spec, ORIGIN)


def test_the_random_initialisation_is_that_of_the_file(tmp_path):
    started = Encoder.create(dataclasses.replace(spec(3), zero_init_last=False), seed=3)
    save_encoder(started, tmp_path / "encoder.safetensors", ORIGIN)
    found, origin = read_header(tmp_path)
    again = Encoder.create(found, origin["seed"])
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), started.parameters(), strict=True))
    as_usual = Encoder.create(spec(3), seed=3)
    assert any(not torch.equal(a, b) for a, b in zip(again.parameters(), as_usual.parameters(), strict=True))


def test_messages_name_the_file(tmp_path):
    save_encoder(Encoder.create(spec(3)), tmp_path / "encoder.safetensors", ORIGIN)
    encoder = mocokit.load(tmp_path)
    encoder.backbone.bn1.weight.data.fill_(float("nan"))
    file = re.escape(str(tmp_path / "encoder.safetensors"))
    with pytest.raises(UserError, match=f"^{file} gives features that are infinite or not a number; train it again"):
        encoder.embed(noise(0))


# Embedding -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(rgb, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "encoder.safetensors"
    save_encoder(rgb, path, ORIGIN)
    return path.read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        mocokit.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def with_header(whole: bytes, **changes: str | None) -> bytes:
    """The file with other metadata; None leaves an entry out."""
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    metadata = header["__metadata__"] | changes
    header["__metadata__"] = {name: value for name, value in metadata.items() if value is not None}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def changed_spec(**changes: object) -> dict[str, str]:
    return {"spec": json.dumps(spec(3).to_dict() | changes)}


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 10_000, 0.5, -1])
def test_truncated(whole, tmp_path, kept):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "not a mocokit encoder file" in refused(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "mocokit-encoder-2"}, "mocokit-encoder-2 where mocokit-encoder-4 was expected"),  # had no digest
        ({"format": None}, "not a mocokit encoder file"),
        ({"spec": None}, "not a mocokit encoder file"),
        ({"spec": "{"}, "not a mocokit encoder file"),
        ({"spec": "[]"}, "not a mocokit encoder file"),
        ({"spec": "{}"}, "not a mocokit encoder file"),
        ({"spec": "[" * 100_000}, "not a mocokit encoder file"),
        ({"origin": "null"}, "not a mocokit encoder file"),
        ({"origin": "{}"}, "not a mocokit encoder file"),
        (changed_spec(backbone="resnet1999"), "timm has no such model"),
        (changed_spec(backbone="resnet18_cifar"), "do not fit resnet18_cifar"),
        (changed_spec(backbone="../../../etc/passwd"), "timm has no such model"),
        (changed_spec(channels=10**12), "not a mocokit encoder file"),
        (changed_spec(channels=4, mean=[0] * 4, std=[1] * 4), "do not fit"),
        (changed_spec(image_size=10**7), "not a mocokit encoder file"),
        (changed_spec(image_size=-1), "not a mocokit encoder file"),
        (changed_spec(image_size=math.inf), "not a mocokit encoder file"),
        (changed_spec(mean=[0.5]), "not a mocokit encoder file"),
        (changed_spec(intensity_range=[1]), "not a mocokit encoder file"),
    ],
)
def test_other_headers(whole, tmp_path, changes, words):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(with_header(whole, **changes))
    assert words in refused(path)


@pytest.mark.parametrize(
    "changes", [{"origin": json.dumps(ORIGIN | {"seed": 99})}, {"digest": None}, {"digest": "0" * 32}, {"more": "1"}]
)
def test_a_changed_header_is_refused(whole, tmp_path, changes):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(with_header(whole, **changes))
    assert refused(path).endswith("its digest does not fit: it is damaged or was changed; pretrain again")


@pytest.mark.parametrize("change", [lambda t: t.half(), lambda t: t + 1e-3])
def test_changed_weights_are_refused(whole, tmp_path, change):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    save_file(weights | {name: change(weights[name])}, path, header)
    assert "its digest does not fit" in refused(path)


def test_other_peoples_files(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    assert "not a mocokit encoder file" in refused(foreign)
    (tmp_path / "text.safetensors").write_text("hello, I am a text file\n" * 100)
    assert "not a mocokit encoder file" in refused(tmp_path / "text.safetensors")
    assert "no encoder here" in refused(tmp_path / "missing.safetensors")
    assert "no encoder here" in refused(tmp_path)


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda trap, path: path.write_bytes(pickle.dumps(trap)), torch.save])
def test_a_pickle_is_never_run(tmp_path, write):
    sprung = tmp_path / "sprung"
    path = tmp_path / "encoder.safetensors"
    write(Trap(sprung), path)
    assert "not a mocokit encoder file" in refused(path)
    assert not sprung.exists()
    content = io.BytesIO(path.read_bytes())
    torch.load(content, weights_only=False) if write is torch.save else pickle.load(content)
    assert sprung.exists()  # the trap was armed


def test_encoder_fingerprint_tells_encoders_apart():
    spec = EncoderSpec("resnet18_narrow", 8, 3, (0.5,) * 3, (0.5,) * 3)
    one = Encoder.create(spec, seed=0)
    assert encoder_fingerprint(one) == encoder_fingerprint(Encoder.create(spec, seed=0))
    others = [Encoder.create(spec, seed=1), Encoder.create(spec, seed=0), Encoder.create(spec, seed=0)]
    others[1].backbone.bn1.running_mean[0] += 1e-3
    others[2].spec = EncoderSpec("resnet18_narrow", 8, 3, (0.5,) * 3, (0.5, 0.5, 0.4))
    assert len({encoder_fingerprint(encoder) for encoder in (one, *others)}) == 4


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "runs/x"), "runs/x: Permission denied"),
        (PermissionError("of pyarrow, in many words"), "x: no encoder (of pyarrow, in many words); name one"),
        (MemoryError(), "x: no encoder (MemoryError); name one"),
    ],
)
def test_what_can_not_be_read_is_not_called_damaged(error, told):
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"), refusing_damage("x: no encoder", "name one"):
        raise error
