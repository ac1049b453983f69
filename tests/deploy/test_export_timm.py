"""The timm export: stock timm and torchvision load it and compute what the encoder computes."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor
from torch.testing import assert_close

from mocokit.deploy import export_timm as module
from mocokit.deploy.export_timm import _TORCHVISION_VITS, export_timm, loading_lines
from mocokit.errors import UserError
from mocokit.model import backbones
from mocokit.model.encoder import Encoder, EncoderSpec
from tests.deploy.exporting import CLASSES, make_encoder, photographs, without

ORIGIN = {"seed": 3, "recipe": "auto"}
ENCODERS = {
    "resnet18": ("resnet18", 32, 3, ()),
    "gray resnet18": ("resnet18", 24, 1, ()),
    "fine-tuned resnet18": ("resnet18", 96, 3, CLASSES),
    "convnext_atto": ("convnext_atto", 32, 3, ()),
    "fine-tuned convnext_atto": ("convnext_atto", 32, 3, CLASSES),
    "resnet18_cifar": ("resnet18_cifar", 16, 3, ()),
    "resnet18_narrow": ("resnet18_narrow", 16, 3, ()),
    "gray resnet18_narrow": ("resnet18_narrow", 16, 1, ()),
    "fine-tuned resnet18_narrow": ("resnet18_narrow", 16, 3, CLASSES),
    "fine-tuned vit_narrow": ("vit_narrow", 16, 3, CLASSES),
    "timm's own resnet18": ("resnet18", 48, 3, (), 0.95),
}


def view(encoder: Encoder, images: np.ndarray) -> Tensor:
    """What the encoder's backbone sees of images [N, H, W, C]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    sizes = torch.tensor([images.shape[1:3]] * len(images))
    return encoder.spec.view(pixels, sizes)


def outputs(encoder: Encoder, x: Tensor) -> Tensor:
    """Features, or logits of a fine-tuned encoder."""
    with torch.inference_mode():
        features = encoder.backbone(x)
        return encoder.classifier(features) if encoder.classifier else features


def code(readme: str, start: str) -> str:
    """The Python of the README's paragraph after the one that starts so."""
    after = readme.partition(f"\n\n{start}")[2]
    return after.partition("```python\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, tuple[Encoder, Path]]:
    folder = tmp_path_factory.mktemp("exports")
    result = {}
    for name, (backbone, size, channels, *more) in ENCODERS.items():
        encoder = make_encoder(backbone, size, channels, *more)
        images = torch.from_numpy(photographs(size + 9, size + 4, channels))
        assert export_timm(encoder, folder / name, ORIGIN, images) <= 1e-6
        result[name] = (encoder, folder / name)
    return result


@pytest.mark.slow
def test_timm_alone_gives_equal_outputs(exported):
    """Each README's own lines, with mocokit out of reach; files of all kinds are in test_preprocessing."""
    top = next(iter(exported.values()))[1].parent
    for encoder, folder in exported.values():
        size, channels = encoder.spec.image_size, encoder.spec.channels
        Image.fromarray(photographs(*awkward(size), channels)[0].squeeze()).save(folder / "image.jpg", quality=95)
        np.save(folder / "x.npy", view(encoder, photographs(2 * size, size + 5, channels)).numpy())
    script = """
import os, numpy, torch
from pathlib import Path
for folder in sorted(Path(".").resolve().iterdir()):
    os.chdir(folder)
    found = {}
    exec(Path("README.txt").read_text().partition("```python\\n")[2].partition("```")[0], found)
    with torch.inference_mode():
        tensor = found["model"](torch.from_numpy(numpy.load("x.npy")))
    numpy.savez("y.npz", tensor=tensor, lines=found["logits" if "logits" in found else "features"])
import sys
print(sorted(name for name in sys.modules if name.partition(".")[0] == "mocokit"))
"""
    assert without(("mocokit",), script, top) == "[]\n"
    for encoder, folder in exported.values():
        expected = outputs(encoder, torch.from_numpy(np.load(folder / "x.npy")))
        assert expected.std(dim=0).max() > 1e-4  # or equality would say nothing
        found = {name: torch.from_numpy(y) for name, y in np.load(folder / "y.npz").items()}
        assert_close(found["tensor"], expected, rtol=1e-6, atol=1e-6)
        with torch.inference_mode():
            features = encoder.embed(folder / "image.jpg")
            seen = encoder.classifier(features) if encoder.classifier else features
        assert_close(found["lines"], seen, rtol=1e-4, atol=1e-5)


def awkward(size: int) -> tuple[int, int]:
    """Height and width for which neither the cut nor a scale is a whole number; mocokit shrinks such images."""
    return 3 * size - 3, size + size // 2 - 1


@pytest.mark.parametrize("name", ["gray resnet18_narrow", "fine-tuned resnet18_narrow", "fine-tuned vit_narrow"])
def test_the_registered_name_and_the_documented_edit_load_the_same(exported, name):
    """timm.create_model knows our backbones once mocokit is imported; the README's lines do without."""
    encoder, folder = exported[name]
    registered = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found: dict = {}
    exec(loading_lines(encoder, folder.as_posix()), found)
    x = view(encoder, photographs(20, 20, encoder.spec.channels))
    with torch.inference_mode():
        assert_close(registered(x), outputs(encoder, x), rtol=0, atol=0)
        assert_close(found["model"](x), outputs(encoder, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", backbones.default_cfgs)
def test_every_backbone_of_ours_has_its_lines(name):
    """The weights' names and shapes are right; that they compute the same is shown above for some."""
    spec = EncoderSpec(name, 16, 3, (0.5,) * 3, (0.5,) * 3)
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=0, **backbones.size_option(name, 16))
        lines = loading_lines(Encoder(backbone, spec), "").splitlines()
        found: dict = {}
        exec("\n".join(line for line in lines if "load_file" not in line), found)
    shapes = {key: tensor.shape for key, tensor in backbone.state_dict().items()}
    assert {key: tensor.shape for key, tensor in found["model"].state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("size", "height", "width", "within"),
    [(16, 16, 16, 1e-3), (32, 64, 96, 0.5), (32, 16, 32, 0.5), (224, 256, 256, 1e-3), (224, 512, 640, 0.5)],
)
def test_timms_transform_is_the_encoders_preprocessing(size, height, width, within):
    """To 8-bit rounding, in sizes where timm cuts in the same place."""
    encoder = make_encoder("resnet18_narrow", size)
    stated = module.pretrained_cfg(encoder, {})
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=stated))
    images = photographs(height, width)
    theirs = torch.stack([transform(Image.fromarray(image)) for image in images])
    gray_levels = 255 * (theirs - view(encoder, images)) * torch.tensor(encoder.spec.std)[:, None, None]
    assert gray_levels.abs().mean() < within


def test_a_fine_tuned_model_also_gives_features(exported):
    encoder, folder = exported["fine-tuned convnext_atto"]
    x = view(encoder, photographs(32, 40))
    with torch.inference_mode():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert_close(model.forward_head(model.forward_features(x), pre_logits=True), encoder.backbone(x))
        headless = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        assert_close(headless(x), encoder.backbone(x))
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    assert model.num_classes == len(CLASSES)


def test_config(exported):
    folder = exported["gray resnet18"][1]
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("resnet18", 0, 512)
    assert config["origin"] == ORIGIN
    stated = config["pretrained_cfg"]
    assert stated["input_size"] == [1, 24, 24]
    assert (stated["mean"], stated["std"]) == ([0.48], [0.22])
    assert (stated["interpolation"], stated["crop_pct"], stated["crop_mode"]) == ("bilinear", 1.0, "center")
    others = {"tag", "license", "url", "hf_hub_id", "origin_url", "test_input_size"}
    assert not {key for key in others if stated.get(key)}  # of weights that timm knows under this name


# torchvision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "fine-tuned resnet18"])
def test_torchvision_loads_the_same_file(exported, name, monkeypatch):
    encoder, folder = exported[name]
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(code((folder / "README.txt").read_text(), "To load the model with torchvision"), found)
    x = view(encoder, photographs(50, 60))
    assert isinstance(found["model"], torchvision.models.ResNet)
    with torch.inference_mode():
        assert_close(found["model"](x), outputs(encoder, x), rtol=1e-6, atol=1e-6)
    assert not (folder / "torchvision.safetensors").exists()


@pytest.mark.parametrize("name", ["gray resnet18", "convnext_atto", "resnet18_cifar", "resnet18_narrow"])
def test_what_torchvision_lacks_is_not_promised(exported, name):
    assert "torchvision.models" not in (exported[name][1] / "README.txt").read_text()


class TinyViT(torchvision.models.VisionTransformer):
    """torchvision's transformer, small."""

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__(32, 8, 2, 3, 24, 96, num_classes=num_classes)


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_a_transformer_is_also_written_in_torchvisions_names(classes, tmp_path, monkeypatch):
    """A small one under the name of the base model, whose 86 M weights take too long here."""
    from timm.models.vision_transformer import VisionTransformer

    def tiny(name: str, num_classes: int = 0, in_chans: int = 3, img_size: int = 32) -> VisionTransformer:
        model = VisionTransformer(img_size, 8, in_chans, num_classes, embed_dim=24, depth=2, num_heads=3)
        model.pretrained_cfg = {"architecture": name, "classifier": "head"}
        return model

    monkeypatch.setattr(backbones.timm, "create_model", tiny)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights=None, **kw: TinyViT(**kw))
    monkeypatch.setattr(module, "_check", lambda *_: 0.0)
    encoder = make_encoder("vit_base_patch16_224", 32, 3, classes)
    export_timm(encoder, tmp_path, ORIGIN, torch.empty(0))
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code((tmp_path / "README.txt").read_text(), "To load the model with torchvision"), found)
    x = view(encoder, photographs(32, 32))
    with torch.inference_mode():
        assert_close(found["model"](x), outputs(encoder, x), rtol=1e-4, atol=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == set(module.FILES)


@pytest.mark.parametrize(("timm_name", "torchvision_name"), _TORCHVISION_VITS.items())
def test_the_named_transformers_are_those_of_torchvision(timm_name, torchvision_name):
    with torch.device("meta"):
        size = torchvision.models.get_model(torchvision_name, weights=None).image_size
        backbone = timm.create_model(timm_name, num_classes=0)
    spec = EncoderSpec(timm_name, size, 3, (0.5,) * 3, (0.5,) * 3)
    assert module.torchvision_weights(Encoder(backbone, spec), backbone) is not None


# Files ---------------------------------------------------------------------------------------------------


def test_only_its_own_files_are_replaced(tmp_path):
    encoder, images = make_encoder("resnet18_narrow", 8), torch.from_numpy(photographs(8, 8))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "torchvision.safetensors").write_text("of another architecture")
    (tmp_path / "model.safetensors").write_text("old")
    export_timm(encoder, tmp_path, ORIGIN, images)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "model.safetensors", "config.json", "README.txt"}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert load_file(tmp_path / "model.safetensors").keys() == encoder.backbone.state_dict().keys()
    if os.name == "posix":
        others = stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode)
        assert all(stat.S_IMODE(p.stat().st_mode) == others for p in tmp_path.iterdir())


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    def forgetful(model, *arguments, **options):
        model.layer4[1].bn2.running_mean.zero_()
        save_for_hf(model, *arguments, **options)

    monkeypatch.setattr(module, "save_for_hf", forgetful)
    encoder, images = make_encoder("resnet18_narrow", 8), torch.from_numpy(photographs(8, 8))
    with pytest.raises(RuntimeError, match="differs from the encoder"):
        export_timm(encoder, tmp_path / "new", ORIGIN, images)
    assert not (tmp_path / "new").exists()


def test_an_architecture_without_a_plain_classifier_is_the_users_to_change(tmp_path):
    encoder = make_encoder("levit_128s", 224, classes=CLASSES)  # classifies by normalised features
    with pytest.raises(UserError, match=r"levit_128s has no linear classifier.*--format onnx"):
        export_timm(encoder, tmp_path / "new", ORIGIN, torch.from_numpy(photographs(9, 9)))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("classes", [(), CLASSES])
def test_transformers(backbone, classes, tmp_path):
    """A distilled one has two classifiers, whose logits it averages."""
    encoder = make_encoder(backbone, 224, classes=classes)
    assert export_timm(encoder, tmp_path, ORIGIN, torch.from_numpy(photographs(300, 250))) < 1e-5
