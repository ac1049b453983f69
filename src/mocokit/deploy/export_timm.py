"""The encoder as a directory that timm loads: weights under timm's names, their preprocessing, and a README.

Nothing of mocokit is needed to load it; what torchvision names differently is also written in its names.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from mocokit.data.sampler import torch_seeded
from mocokit.deploy.encoder_file import saving
from mocokit.deploy.export_onnx import largest_difference
from mocokit.deploy.preprocessing import README, claim, example_file, fenced, made_by, reading_lines
from mocokit.errors import UserError
from mocokit.files import replacing
from mocokit.model.backbones import size_option
from mocokit.model.encoder import Encoder
from mocokit.model.weights import to_torchvision_vit

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TORCHVISION_WEIGHTS = "torchvision.safetensors"  # only where the names differ
FILES = (WEIGHTS, CONFIG, README, TORCHVISION_WEIGHTS)
CHECKED = 8  # images: enough to show a weight that is missing
TOLERANCE = 1e-6  # of the largest output; the same operations run on the same weights

# Stock timm in place of our backbones; a ResNet's stem and pooling are then replaced.
_STOCK = {
    **{f"{name}_cifar": f'timm.create_model("{name}", {{options}})' for name in ("resnet18", "resnet34", "resnet50")},
    "resnet18_narrow": "timm.models.resnet.ResNet(\n"
    "    timm.models.resnet.BasicBlock, (2, 2, 2, 2), channels=(16, 32, 64, 128),\n"
    '    stem_type="deep", stem_width=8, {options},\n'
    ")",
    "vit_tiny_cifar": "timm.models.vision_transformer.VisionTransformer(\n"
    "    img_size={size}, patch_size=4, embed_dim=192, depth=12, num_heads=3, {options},\n"
    ")",
    "vit_narrow": "timm.models.vision_transformer.VisionTransformer(\n"
    "    img_size={size}, patch_size=4, embed_dim=128, depth=6, num_heads=4, {options},\n"
    ")",
}

# timm's Vision Transformers under torchvision's names.
_TORCHVISION_VITS = {
    f"vit_{kind}_patch{patch}_224": f"vit_{kind[0]}_{patch}"
    for kind, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14))
}


def export_timm(encoder: Encoder, folder: Path, origin: dict[str, Any], images: Tensor) -> float:
    """Write `FILES` into ``folder``; other files there are left alone.

    A fine-tuned encoder's classifier becomes that of the timm model, which then gives logits.

    Args:
        encoder: on the CPU, in evaluation mode.
        folder: made if need be. What is there already is replaced when everything new is written and checked.
        origin: where the encoder comes from, for ``config.json``; plain values.
        images: uint8 [P, H, W, C], to check with.

    Returns:
        The largest absolute difference between the outputs of what timm loads and those of the encoder.

    Raises:
        UserError: the timm architecture has no place for the classifier.
        OSError: the disk is full, or the folder is not writable.
        RuntimeError: the difference is more than `TOLERANCE` of the largest output; no file is written.
    """
    model = _timm_model(encoder)
    torchvision_names = torchvision_weights(encoder, model)
    with tempfile.TemporaryDirectory() as temporary:
        new = Path(temporary)
        extra = {"origin": origin, "label_names": list(encoder.classes)}
        with saving(new):
            save_for_hf(model, temporary, model_config=extra, safe_serialization=True)
            if torchvision_names is not None and torchvision_names.keys() != model.state_dict().keys():
                save_file(torchvision_names, new / TORCHVISION_WEIGHTS)
        (new / README).write_text(_readme(encoder, torchvision_names is not None), encoding="utf-8")
        difference = _check(encoder, new, images)
        for name in FILES:
            if (new / name).exists():
                with replacing(folder / name) as target:
                    shutil.copyfile(new / name, target)
            else:
                (folder / name).unlink(missing_ok=True)
    return difference


def using_lines(encoder: Encoder, folder: str) -> str:
    """Python that gives what the export in ``folder`` makes of an image file, without mocokit."""
    spec = encoder.spec
    side = "min(pixels.shape[1:])" + ("" if spec.crop_share == 1 else f" * {spec.crop_share:g}")
    size = f"[{spec.image_size}, {spec.image_size}]"
    if spec.interpolation != "bilinear":
        size += f", F.InterpolationMode.{spec.interpolation.upper()}"
    return (
        f"{reading_lines(spec)}"
        "import torch\n"
        "from torchvision.transforms.v2 import functional as F\n"
        "\n"
        "def preprocess(file):\n"
        "    pixels = torch.tensor(read_image(file)).permute(2, 0, 1)\n"
        f"    square = F.center_crop(pixels, round({side}))\n"
        f"    resized = F.resize(square / 255, {size}, antialias=True)\n"
        f"    return F.normalize(resized, {list(spec.mean)}, {list(spec.std)})\n"
        "\n"
        f"{loading_lines(encoder, folder)}"
        f'x = preprocess("{example_file(spec)}")[None]\n'
        f"{_output(encoder)} = model(x).detach()\n"
    )


def loading_lines(encoder: Encoder, folder: str) -> str:
    """Python that loads the export in ``folder`` without mocokit, as ``model``."""
    spec = encoder.spec
    if spec.backbone not in _STOCK:
        return f"import timm\nmodel = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True).eval()\n"
    options = f"in_chans={spec.channels}, num_classes={len(encoder.classes)}"
    edit = (
        f"model.conv1 = torch.nn.Conv2d({spec.channels}, model.bn1.num_features, 3, padding=1, bias=False)\n"
        "model.maxpool = torch.nn.Identity()\n"
    )
    return (
        "import safetensors.torch, timm, torch\n"
        f"model = {_STOCK[spec.backbone].format(size=spec.image_size, options=options)}\n"
        f"{edit if spec.backbone.startswith('resnet') else ''}"
        f"model.load_state_dict(safetensors.torch.load_file({f'{folder}/{WEIGHTS}'!r}))\n"
        "model = model.eval()\n"
    )


def torchvision_weights(encoder: Encoder, model: nn.Module) -> dict[str, Tensor] | None:
    """The weights of a timm ``model`` under torchvision's names; None if torchvision has no such network."""
    name = _torchvision_name(encoder)
    if name is None:
        return None
    weights = dict(model.state_dict())
    if name in _TORCHVISION_VITS.values():
        weights = {to_torchvision_vit(key): tensor for key, tensor in weights.items()}
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, num_classes=len(encoder.classes) or 1).state_dict()
    missing = theirs.keys() - weights.keys()
    fits = all(key in theirs and theirs[key].shape == tensor.shape for key, tensor in weights.items())
    return weights if fits and len(missing) == (0 if encoder.classifier else 2) else None


def _torchvision_name(encoder: Encoder) -> str | None:
    name = _TORCHVISION_VITS.get(encoder.spec.backbone, encoder.spec.backbone)
    return name if name in torchvision.models.list_models() else None


def _timm_model(encoder: Encoder) -> nn.Module:
    """The backbone as timm builds it, with the classifier where timm has it."""
    spec = encoder.spec
    with torch_seeded(0, "weights that are replaced"):
        model: nn.Module = timm.create_model(
            spec.backbone,
            num_classes=len(encoder.classes),
            in_chans=spec.channels,
            **size_option(spec.backbone, spec.image_size),
        )
    weights = dict(encoder.backbone.state_dict())
    try:
        if encoder.classifier is not None:
            own = encoder.classifier.state_dict()
            for key, tensor in model.state_dict().items():
                if key not in weights:  # two classifiers, as of a distilled transformer, are averaged
                    weights[key] = own[key.rpartition(".")[2]].reshape(tensor.shape)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError):
        raise UserError(f"timm's {spec.backbone} has no linear classifier on its features; use --format onnx") from None
    model.pretrained_cfg = pretrained_cfg(encoder, model.pretrained_cfg)  # type: ignore[assignment, arg-type]
    return model


def pretrained_cfg(encoder: Encoder, known: Mapping[str, Any]) -> dict[str, Any]:
    """timm's configuration of the weights: the architecture and how its images are prepared.

    What timm knows of weights under this name (``known``) is not true of these; what it knows of the network is.
    """
    spec = encoder.spec
    return {
        "architecture": spec.backbone,
        **{key: known.get(key) for key in ("fixed_input_size", "first_conv", "classifier")},
        "num_classes": len(encoder.classes),
        "input_size": (spec.channels, spec.image_size, spec.image_size),
        "interpolation": spec.interpolation,
        "crop_mode": "center",
        "crop_pct": spec.crop_share,
        "mean": spec.mean,
        "std": spec.std,
    }


@torch.inference_mode()
def _check(encoder: Encoder, folder: Path, images: Tensor) -> float:
    """Load ``folder`` with timm and compare; RuntimeError if outputs differ beyond the tolerance."""
    spec = encoder.spec
    with torch_seeded(0, "weights that are replaced"):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = images[:CHECKED].permute(0, 3, 1, 2).contiguous()
    sizes = torch.tensor([pixels.shape[2:]] * len(pixels))
    found = model(spec.view(pixels, sizes))
    features = encoder(pixels, sizes)
    expected = features if encoder.classifier is None else encoder.classifier(features)
    return largest_difference(found, expected, TOLERANCE, f"timm's {spec.backbone} differs from the encoder")


def _output(encoder: Encoder) -> str:
    return "logits" if encoder.classes else "features"


def _readme(encoder: Encoder, in_torchvision: bool) -> str:
    spec, K = encoder.spec, len(encoder.classes)
    parts = [
        f"{made_by(encoder)}. It gives "
        + (f"logits [N, {K}] of the label_names in {CONFIG}." if K else f"features [N, {encoder.dim}]."),
        "To use it with timm, in this directory:",
        fenced(using_lines(encoder, ".")),
        claim(spec, _output(encoder)),
        f"The transform that timm makes of {CONFIG} is near to that, not equal: it resizes in 8 bits and cuts at other "
        f"pixels, and EXIF orientation, transparency and {'colour' if spec.channels == 1 else 'gray'} files are left "
        "to you.",
    ]
    if K:
        parts.append("Features instead of logits: model.forward_head(model.forward_features(x), pre_logits=True).")
    if in_torchvision:
        parts += ["To load the model with torchvision instead:", fenced(_torchvision_lines(encoder))]
    return "\n\n".join(parts) + "\n"


def _torchvision_lines(encoder: Encoder) -> str:
    name, K = _torchvision_name(encoder), len(encoder.classes)
    same = name == encoder.spec.backbone
    head = encoder.backbone.pretrained_cfg["classifier"] if same else "heads"  # type: ignore[index]
    return (
        "import safetensors.torch, torch, torchvision\n"
        f'model = torchvision.models.get_model("{name}"{f", num_classes={K}" if K else ""})\n'
        + ("" if K else f"model.{head} = torch.nn.Identity()\n")
        + f'model.eval().load_state_dict(safetensors.torch.load_file("{WEIGHTS if same else TORCHVISION_WEIGHTS}"))\n'
    )
