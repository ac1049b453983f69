"""Any encoder by its name: a run, an encoder file, a network of timm, or a weights file that others wrote."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from mocokit.config import MAX_IMAGE_SIZE
from mocokit.console import say
from mocokit.deploy.encoder_file import encoder_path, is_encoder_file, read_encoder
from mocokit.errors import UserError, reason_of, refusing_damage
from mocokit.files import utf8_path
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.weights import fit_weights, flat_tensors, match

TIMM = "timm:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the weights of a repository, the first that there is
CONNECT_SECONDS = 5


def load(
    path: str | Path, device: str | torch.device = "cpu", *, backbone: str | None = None, image_size: int | None = None
) -> Encoder:
    """Load a pretrained encoder, ready to embed.

    Args:
        path: a run directory or its ``encoder.safetensors``; ``timm:NAME``, weights that timm downloads, such as
            ``timm:resnet18.a1_in1k``; or a weights file (.safetensors, .pth, .pt) of timm, torchvision, the authors
            of MoCo, lightly, solo-learn or DINO, whose classifier and heads are left out.
        device: where to put the weights.
        backbone: the timm model that the weights of such a file are of.
        image_size: side of the square images in pixels, where it is not to be what timm's or a file's network was
            trained with.

    Returns:
        An `Encoder` in evaluation mode; ``load("runs/digits").embed(["a.png"])`` gives features [1, D].

    Raises:
        UserError: no encoder there, damaged or changed since it was written, weights that do not fit their backbone,
            or that can't be downloaded.
    """
    name = str(path)
    if is_foreign(name):
        encoder = _from_timm(name, backbone, image_size) if _is_timm(name) else _from_file(name, backbone, image_size)
    else:
        encoder = read_encoder(encoder_path(path))
        for option, given in (("--backbone", backbone), ("--image-size", image_size)):
            own = encoder.spec.backbone if option == "--backbone" else encoder.spec.image_size
            if given not in (None, own):
                raise UserError(f"{option} {given}: {name} is an encoder of mocokit, with {own}; leave {option} out")
    return encoder.eval().to(device)


def is_foreign(path: str) -> bool:
    """Whether ``path`` names weights that others trained, not an encoder of mocokit; nothing but a header is read."""
    if _is_timm(path):
        return True
    file = Path(path).expanduser()
    return file.is_file() and not is_encoder_file(file)


def home_of(path: str) -> Path:
    """The directory of an encoder's results: its run, or for weights that others trained one below ``runs/``.

    Raises:
        UserError: no encoder there.
    """
    if not is_foreign(path):
        return encoder_path(path).parent
    return Path("runs") / (path.removeprefix(TIMM) if _is_timm(path) else Path(path).stem)


def _is_timm(path: str) -> bool:
    return path == "timm" or path.startswith(TIMM)


def _from_timm(name: str, backbone: str | None, image_size: int | None) -> Encoder:
    """``timm:NAME``, or ``timm`` for the weights that timm prefers for ``backbone``."""
    model = name.removeprefix(TIMM) if name != "timm" else backbone
    if not model:
        raise UserError(f"{name}: which network? Give timm:NAME, such as timm:resnet18.a1_in1k, or --backbone NAME")
    architecture = model.split(".")[0]
    if backbone is not None and backbone.split(".")[0] != architecture:
        raise UserError(f"--backbone {backbone}: {name} is another one; leave --backbone out")
    config = _pretrained_cfg(model)
    encoder = Encoder.create(_spec(architecture, config, image_size))  # refuses what timm does not know
    if config is None or not config.has_weights:
        known = ", ".join(timm.list_pretrained(f"{architecture}*")[:5]) or "none of this network"
        raise UserError(f"{name}: timm has no weights of that name; it has {known}")
    weights = _download(name, model, architecture, config)
    notes = fit_weights(encoder.backbone, weights, architecture)
    return _told(encoder, name, [f"weights of {model} from timm", *notes])


def _download(name: str, model: str, architecture: str, config: Any) -> dict[str, Tensor]:
    """The weights, by way of the hub's own cache or, where they are elsewhere, of timm's."""
    try:
        overlay = {"file": _hub_file(config)} if config.hf_hub_id else {}
        network: nn.Module = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except Exception as error:
        reason = reason_of(error)
        file = str(config.url or config.file)
        if config.hf_hub_id:
            file = f"{HUB_FILES[0]} of {config.hf_hub_id} from the Hugging Face hub"
        raise UserError(
            f"{name}: its weights can't be downloaded ({reason}); where there is a network fetch {file}, "
            f"then name that file here, with --backbone {architecture}"
        ) from None
    return network.state_dict()


def is_hub_reachable() -> bool:
    """Whether weights can be downloaded from here; takes `CONNECT_SECONDS` at most."""
    import huggingface_hub as hub

    try:
        hub.get_session().head(hub.constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception:  # whatever a network gives
        return False
    return True


def _hub_file(config: Any) -> str:
    """The weights in the hub's cache, downloaded if need be; without a network only looked up, at once."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    offline = not is_hub_reachable()  # one that is asked for a file tries for half a minute
    files = [config.hf_hub_filename] if config.hf_hub_filename else HUB_FILES
    for file in files:
        try:
            return hub.hf_hub_download(config.hf_hub_id, file, local_files_only=offline)
        except EntryNotFoundError:  # also where there is no network
            continue
    raise FileNotFoundError("no network, and not in the cache" if offline else f"it has no {files[0]}")


def _from_file(name: str, backbone: str | None, image_size: int | None) -> Encoder:
    if backbone is None:
        raise UserError(
            f"{name}: not a mocokit encoder file; if these are weights of another tool, say of which network: "
            f"--backbone NAME, a name of timm such as resnet50"
        )
    file, architecture = Path(name).expanduser(), backbone.split(".")[0]
    config = _pretrained_cfg(backbone)
    encoder = Encoder.create(_spec(architecture, config, image_size))
    found = read_weights(file)
    try:
        matched = match(found, encoder.backbone, architecture)
        notes = fit_weights(encoder.backbone, matched.weights, architecture)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return _told(encoder, name, [f"{architecture}: {matched.describe()}", *notes])


def read_weights(file: Path) -> dict[str, Tensor]:
    """All tensors of a weights file by name, of nested ones too; no code in it is run.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    way_out = "name a .safetensors, .pth or .pt file of weights"
    with refusing_damage(f"{file}: not a weights file that can be read", way_out):
        file.open("rb").close()  # says why it can't be read, which safetensors does not
        if file.suffix == ".safetensors":
            with safe_open(utf8_path(file), framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its message explains how to run what is inside
            holds = "objects beside tensors, which could run code" if _is_pickle(file) else "no weights"
            raise UserError(f"{file}: holds {holds}; save its state_dict alone, best as .safetensors") from None
        return dict(flat_tensors(content))


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return zipfile.is_zipfile(file) or opened.read(1) == b"\x80"


def _pretrained_cfg(model: str) -> Any:
    """What timm knows of the weights of ``model``; None if there are none of that name."""
    try:
        return timm.get_pretrained_cfg(model)
    except RuntimeError:
        return None


def _spec(architecture: str, config: Any, image_size: int | None) -> EncoderSpec:
    """How the images of weights are prepared: as timm's ``config`` of them says; without one as is usual."""
    channels, size = (config.input_size[0], config.input_size[-1]) if config else (3, 224)
    mean, std = (config.mean, config.std) if config else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if image_size is None and not 0 < size <= MAX_IMAGE_SIZE:
        raise UserError(f"{architecture} was trained with {size} pixels; give a smaller --image-size")
    return EncoderSpec(
        backbone=architecture,
        image_size=image_size or size,
        channels=channels,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        crop=float(config.crop_pct) if config else None,
        interpolation="bicubic" if config and config.interpolation == "bicubic" else "bilinear",
    )


def _told(encoder: Encoder, name: str, facts: list[str]) -> Encoder:
    """The encoder with its name and origin; what is known of it is said."""
    spec = encoder.spec
    encoder.name = name
    encoder.origin = {"weights": name, "seed": 0, "keeps_statistics": True}
    say(f"{name}: {'; '.join(facts)}")
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (spec.mean, spec.std))
    how = f"{spec.crop_share:g} of the shorter side, {spec.interpolation}, mean {mean}, deviation {std}"
    say(f"{name}: images of {spec.image_size} pixels, {how}, as timm has it for {spec.backbone}")
    return encoder
