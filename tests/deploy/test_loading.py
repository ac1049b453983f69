"""Any encoder by its name: timm's from the hub's cache, weights files of others, and one line for what is none."""

import dataclasses
import pickle
import zipfile

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

import mocokit
from mocokit.deploy.encoder_file import save_encoder
from mocokit.deploy.loading import home_of, is_foreign, load, read_weights
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder
from tests.encoders import ORIGIN, spec

TIMM = "timm:resnet10t.c3_in1k"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache with random weights of one network, and no network; gives that network."""
    network = timm.create_model("resnet10t", num_classes=1000).eval()
    repository = "models--" + timm.get_pretrained_cfg("resnet10t.c3_in1k").hf_hub_id.replace("/", "--")
    snapshot = tmp_path / "hub" / repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_file(network.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def no_network():
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_session", no_network)
    network.reset_classifier(0)
    return network


def test_timms_weights_with_timms_preprocessing(hub, capfd):
    """Of a picture of their own size features equal those of timm's own transform, up to the rounding of pixels."""
    encoder = load(TIMM)
    known = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert encoder.spec.image_size == known.input_size[-1]
    assert (encoder.spec.mean, encoder.spec.std) == (known.mean, known.std)
    assert (encoder.spec.crop_share, encoder.spec.interpolation) == (known.crop_pct, known.interpolation)
    stderr = capfd.readouterr().err
    assert f"{TIMM}: weights of resnet10t.c3_in1k from timm\n" in stderr
    assert f"{TIMM}: images of {known.input_size[-1]} pixels, {known.crop_pct:g} of the shorter side, bicubic" in stderr

    smooth = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(smooth, (400, 400), mode="bicubic")[0].clamp(0, 1) * 255
    image = Image.fromarray(pixels.byte().numpy().transpose(1, 2, 0))
    transform = create_transform(**resolve_data_config(hub.pretrained_cfg), is_training=False)
    with torch.no_grad():
        expected = hub(transform(image)[None])
    torch.testing.assert_close(encoder.embed(image), expected, rtol=0.02, atol=0.02)
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(encoder.backbone(x), hub(x), rtol=0, atol=1e-5)


def test_timm_alone_means_the_backbone_and_the_size_may_be_another(hub):
    encoder = load("timm", backbone="resnet10t", image_size=40)
    assert (encoder.spec.backbone, encoder.spec.image_size) == ("resnet10t", 40)
    assert encoder.origin == {"weights": "timm", "seed": 0, "keeps_statistics": True}
    assert mocokit.load is load


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("timm:resnet18.a1_in1k", {}, r"can't be downloaded \(no network, and not in the cache\); where there is a "
         "network fetch model.safetensors of timm/resnet18.a1_in1k from the Hugging Face hub, then name that file "
         "here, with --backbone resnet18"),
        ("timm:resnet18.nope", {}, "timm has no weights of that name; it has resnet18.a1_in1k"),
        ("timm:resnet18_cifar", {}, "timm has no weights of that name; it has none of this network"),
        ("timm:resnet", {}, "timm has no such model; did you mean"),
        ("timm", {}, "which network"),
        (TIMM, {"backbone": "resnet18"}, "--backbone resnet18: timm:resnet10t.c3_in1k is another one"),
    ],
)  # fmt: skip
def test_what_timm_can_not_give_is_one_line(hub, name, options, why):
    with pytest.raises(UserError, match=why) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_weights_file(tmp_path, suffix, capfd):
    network = torchvision.models.resnet18(weights=None).eval()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(network.state_dict(), file)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}}, file)
    encoder = load(file, backbone="resnet18")
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.backbone(x), network(x), rtol=0, atol=1e-5)
    assert "left out: 2, the first is" in capfd.readouterr().err
    assert is_foreign(str(file))
    with pytest.raises(UserError, match=f"^{file}: not a mocokit encoder file; .* --backbone NAME"):
        load(file)
    with pytest.raises(UserError, match=f"^{file}: has no .* of resnet34"):
        load(file, backbone="resnet34")


def test_an_encoder_file_has_its_own_backbone_and_size(tmp_path):
    encoder = Encoder.create(dataclasses.replace(spec(3), crop=0.9, interpolation="bicubic")).eval()
    file = tmp_path / "encoder.safetensors"
    save_encoder(encoder, file, ORIGIN)
    assert not is_foreign(str(file))
    loaded = load(file, backbone="resnet18_narrow", image_size=24)
    assert loaded.spec == encoder.spec
    assert loaded.origin == ORIGIN
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    assert torch.equal(loaded.embed(image), encoder.embed(image))
    for options, what in (({"backbone": "resnet18"}, "--backbone resnet18"), ({"image_size": 32}, "--image-size 32")):
        with pytest.raises(UserError, match=f"^{what}: {file} is an encoder of mocokit"):
            load(file, **options)


class Code:
    def __reduce__(self):
        return open, ("executed", "w")


def test_code_in_a_weights_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "more": Code()}, "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Code()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UserError, match=f"^{name}: holds objects beside tensors, which could run code; save its"):
            load(name, backbone="resnet18")
    assert not (tmp_path / "executed").exists()


def refused(file):
    try:
        load(file, backbone="resnet10t")
    except UserError as error:
        return str(error)
    return None  # damaged in values alone


def test_a_damaged_weights_file_is_one_line(tmp_path):
    whole = {}
    for suffix in (".safetensors", ".pth"):
        file = tmp_path / f"whole{suffix}"
        weights = timm.create_model("resnet10t").state_dict()
        save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
        whole[suffix] = file.read_bytes()
    draw = np.random.default_rng(0)
    damaged = tmp_path / "damaged"
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme", "no weights")
    files = [tmp_path / "zip.pth"]
    for suffix, content in whole.items():
        for number in range(12):
            file = damaged.with_name(f"{number}{suffix}")
            part = bytearray(content[: int(draw.integers(0, len(content)))] if number % 2 else content)
            for place in draw.integers(0, min(len(part), 4000) or 1, 20 if len(part) else 0):
                part[place] = draw.integers(256)
            file.write_bytes(part)
            files.append(file)
    said = [(file, message) for file in files if (message := refused(file))]
    assert len(said) > 12
    for file, message in said:
        assert message.startswith(f"{file}: ")
        assert "\n" not in message
        assert len(message) < 500


def test_names_of_tensors(tmp_path):
    torch.save({"a": {"b": torch.ones(2)}, "c": 1}, tmp_path / "x.pt")
    assert list(read_weights(tmp_path / "x.pt")) == ["a.b"]
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(UserError, match="has no weights of resnet18; its own are none"):
        load(tmp_path / "x.pt", backbone="resnet18")


def test_where_results_go(tmp_path):
    save_encoder(Encoder.create(spec(3)), tmp_path / "encoder.safetensors", ORIGIN)
    assert home_of(str(tmp_path)) == home_of(str(tmp_path / "encoder.safetensors")) == tmp_path
    assert str(home_of(TIMM)) == "runs/resnet10t.c3_in1k"
    (tmp_path / "lite0.pth").write_bytes(b"")
    assert str(home_of(str(tmp_path / "lite0.pth"))) == "runs/lite0"
