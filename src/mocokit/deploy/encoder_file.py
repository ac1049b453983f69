"""The encoder file: weights and preprocessing in one safetensors file, written by pretraining, read by every verb."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mocokit.errors import UserError, refusing_damage
from mocokit.files import replacing, utf8_path
from mocokit.model.digest import digest
from mocokit.model.encoder import Encoder, EncoderSpec

FAMILY = "mocokit-encoder-"
FORMAT = f"{FAMILY}4"
CLASSIFIER = "mocokit_classifier."  # prefix of the classifier's weights; no timm model has such a name


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Inside, what safetensors raises on a full disk is an OSError of ``path``, as of any other file."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), str(path)) from error


def save_encoder(encoder: Encoder, path: Path, origin: dict[str, Any]) -> None:
    """Write the weights and, in the header, all that rebuilds the encoder.

    ``origin`` says where it comes from: ``seed``, recipe, data fingerprint, versions; plain values.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    header = {"format": FORMAT, "spec": json.dumps(encoder.spec.to_dict()), "origin": json.dumps(origin)}
    weights = dict(encoder.backbone.state_dict())
    if encoder.classifier is not None:
        header["classes"] = json.dumps(encoder.classes)
        weights |= {CLASSIFIER + name: tensor for name, tensor in encoder.classifier.state_dict().items()}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary, saving(path):
        save_file(weights, temporary, metadata=header | {"digest": _digest(header, weights)})


def _digest(header: dict[str, str], weights: dict[str, torch.Tensor]) -> str:
    """Of the header and the weights, in the order of their names, which the format does not keep."""
    return digest([sorted(header.items()), sorted(weights.items())])


def encoder_path(path: str | Path) -> Path:
    """The encoder file that ``path`` means: itself, or the one in that run directory; a UserError if there is none."""
    path = Path(os.path.expanduser(path))
    file = path / "encoder.safetensors" if path.is_dir() else path
    if file.is_file():
        return file
    if (path / "config.yaml").exists():
        raise UserError(f"{path}: this run has not finished; run its mocokit pretrain command again")
    raise UserError(f"{path}: no encoder here; name a run directory or an encoder.safetensors file")


def is_encoder_file(file: Path) -> bool:
    """Whether a file is an encoder file of mocokit, of any version; a damaged one may not be."""
    try:
        with safe_open(utf8_path(file), framework="pt") as opened:
            return (opened.metadata() or {}).get("format", "").startswith(FAMILY)
    except Exception:  # whatever comes of another kind of file
        return False


def read_header(path: str | Path) -> tuple[EncoderSpec, dict[str, Any]]:
    """The spec of an encoder file and its origin; no weights are read.

    Raises:
        UserError: not an encoder file, damaged, or of another version.
    """
    file = encoder_path(path)
    with refusing_damage(f"{file}: not a mocokit encoder file", "name a run directory or its encoder file"):
        file.open("rb").close()  # says why it can't be read, which safetensors does not
        with safe_open(utf8_path(file), framework="pt") as opened:
            header = opened.metadata() or {}
        if header.get("format") != FORMAT:
            found = header.get("format", "none")
            raise UserError(f"{file}: encoder format {found} where {FORMAT} was expected; pretrain again")
        origin = dict(json.loads(header["origin"]))
        origin["seed"] = int(origin["seed"])  # of the random initialisation that the encoder is compared with
        return EncoderSpec.from_dict(json.loads(header["spec"])), origin


def read_encoder(file: Path) -> Encoder:
    """The encoder in a file that mocokit wrote, on the CPU and in evaluation mode.

    Raises:
        UserError: it is damaged or changed since it was written, or its weights do not fit its backbone.
    """
    spec, origin = read_header(file)
    with refusing_damage(f"{file}: its weights do not fit {spec.backbone}", "pretrain again"):
        encoder = Encoder.create(spec)
        with safe_open(utf8_path(file), framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            header = opened.metadata() or {}
        as_written = header.pop("digest", None) == _digest(header, weights)
        classes = tuple(map(str, json.loads(header.get("classes", "[]"))))
        if classes:
            encoder.classes, encoder.classifier = classes, nn.Linear(encoder.dim, len(classes))
            own = {name: weights.pop(CLASSIFIER + name) for name in ("weight", "bias")}
            encoder.classifier.load_state_dict(own)
        encoder.backbone.load_state_dict(weights)
    if not as_written:
        raise UserError(f"{file}: its digest does not fit: it is damaged or was changed; pretrain again")
    encoder.name, encoder.origin = str(file), origin
    return encoder.eval()


def encoder_fingerprint(encoder: Encoder) -> str:
    """Digest of all that decides about an encoder's output: weights, preprocessing and classes."""
    digest = hashlib.blake2b(json.dumps([encoder.spec.to_dict(), encoder.classes]).encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
