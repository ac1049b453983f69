"""Weights under other names than timm's, or of another image size or number of channels, made to fit a backbone."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mocokit.data.notes import listed
from mocokit.errors import UserError

# timm's names of a Vision Transformer's weights, and torchvision's; # is the number of a block.
_BLOCK, _LAYER = "blocks.#.", "encoder.layers.encoder_layer_#."
_VIT_NAMES = (
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj.", "conv_proj."),
    ("norm.", "encoder.ln."),
    ("head.", "heads.head."),
    (f"{_BLOCK}norm1.", f"{_LAYER}ln_1."),
    (f"{_BLOCK}norm2.", f"{_LAYER}ln_2."),
    (f"{_BLOCK}attn.qkv.", f"{_LAYER}self_attention.in_proj_"),
    (f"{_BLOCK}attn.proj.", f"{_LAYER}self_attention.out_proj."),
    (f"{_BLOCK}mlp.fc1.", f"{_LAYER}mlp.0."),
    (f"{_BLOCK}mlp.fc2.", f"{_LAYER}mlp.3."),
)
RESNET_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")  # those with weights, in their order
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Match:
    """The weights of a backbone, by its own names, that were found among others: all that began with ``prefix``.

    ``left`` are the names of the others, such as heads and the weights of a momentum encoder. ``lacks_relu``: they are
    the parts of lightly's ``ResNetGenerator`` in a row, which has no activation behind the first batch norm.
    """

    weights: dict[str, Tensor]
    prefix: str
    left: list[str]
    lacks_relu: bool = False

    def describe(self) -> str:
        """What was taken and what was left, in one line."""
        under = f" under {self.prefix}" if self.prefix else ""
        left = f"; left out: {len(self.left)}, the first is {self.left[0]}" if self.left else ""
        relu = "; they were trained without the first ReLU, which is there now: features differ" * self.lacks_relu
        return f"{len(self.weights)} tensors taken{under}{left}{relu}"


def match(found: Mapping[str, Tensor], backbone: nn.Module, name: str) -> Match:
    """Recognise the weights of a backbone, called ``name``, among those ``found`` in a file.

    Prefixes are recognised by what follows them; names may be timm's, torchvision's, or the numbers that the parts of
    a ResNet have in a `torch.nn.Sequential`. Of a query and a momentum encoder the query encoder is taken (the one that
    MoCo trains), as of BYOL's online and target network; of student and teacher, and of a network and its average over
    the training, the latter. Else of equals the shortest prefix, then the first by the alphabet.

    Raises:
        UserError: some weights are not there, or are those of a larger network.
    """
    own = backbone.state_dict()
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    best, prefix, names = 0, "", dict[str, str]()
    for rename in (str, _from_torchvision_vit, _Sequential(found)):
        renamed = {new: old for old in found if (new := rename(old)) is not None}
        for candidate in sorted(_prefixes(renamed, wanted), key=_rank):
            count = sum(candidate + key in renamed for key in wanted)
            if count > best:
                best, prefix, names = count, candidate, renamed
    missing = [key for key in wanted if prefix + key not in names]
    if not best or missing:
        what = "no weights" if not best else f"no {listed(missing)}"
        raise UserError(f"has {what} of {name}; its own are {listed(list(found)) or 'none'}")
    parts = {key.split(".")[0] for key in wanted}
    inside = {key.removeprefix(prefix): old for key, old in names.items() if key.startswith(prefix)}
    if more := [old for key, old in inside.items() if key.split(".")[0] in parts and key not in own]:
        raise UserError(f"has {listed(more)}, for which {name} has no place; name its own --backbone")
    taken = {old for key, old in inside.items() if key in own}
    left = [key for key in found if key not in taken]
    return Match({key: found[inside[key]] for key in wanted}, prefix, left, any(".shortcut." in key for key in taken))


def fit_weights(backbone: nn.Module, weights: Mapping[str, Tensor], name: str) -> list[str]:
    """Load ``weights`` into ``backbone``, called ``name``; a phrase for each that had to be adapted.

    The first convolution is adapted to another number of channels, and the embedding of positions to another image
    size, as timm does.

    Raises:
        UserError: a shape that does not fit, or a value that is not finite.
    """
    state, notes = backbone.state_dict(), []
    config: Any = getattr(backbone, "pretrained_cfg", None) or {}
    first = config.get("first_conv") or ()
    first_convolutions = {f"{conv}.weight" for conv in ([first] if isinstance(first, str) else first)}
    for key, target in state.items():
        if key not in weights:
            continue  # num_batches_tracked
        tensor = weights[key].detach().to("cpu", target.dtype)
        if not torch.isfinite(tensor).all():
            raise UserError(f"{key} holds values that are infinite or not a number")
        try:
            if tensor.shape != target.shape and key in first_convolutions:
                tensor, before = adapt_input_conv(target.shape[1], tensor), tensor.shape[1]
                notes.append(f"first convolution of {before} channels adapted to {target.shape[1]}")
            elif tensor.shape != target.shape and key == "pos_embed":
                prefix = int(getattr(backbone, "num_prefix_tokens", 0))
                grid: Any = backbone.patch_embed.grid_size  # type: ignore[union-attr]
                tensor, before = resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=prefix), tensor.shape[1]
                notes.append(f"{before} positions resampled to {target.shape[1]}")
        except (NotImplementedError, AssertionError, RuntimeError):
            pass  # its shape is told below
        if tensor.shape != target.shape:
            shapes = " x ".join(map(str, tensor.shape)), " x ".join(map(str, target.shape))
            raise UserError(f"{key} is {shapes[0]} where {name} has {shapes[1]}")
        state[key] = tensor
    backbone.load_state_dict(state)
    return notes


def _rank(prefix: str) -> tuple[int, int, str]:
    """The smaller, the sooner a prefix is taken among those with as many weights."""
    if re.search(r"teacher|ema\b|_ema", prefix):
        return -1, len(prefix), prefix
    return int(bool(re.search(r"momentum|target|encoder_k|student|_k\.", prefix))), len(prefix), prefix


def _prefixes(names: Mapping[str, str], wanted: list[str]) -> set[str]:
    """What comes before the first of the ``wanted`` names, wherever these end a name."""
    return {
        key.removesuffix(anchor)
        for anchor in wanted[:SHOWN]
        for key in names
        if key == anchor or key.endswith(f".{anchor}")
    }


def to_torchvision_vit(key: str) -> str:
    """torchvision's name of a weight of timm's Vision Transformer."""
    return _renamed(key, _VIT_NAMES)


def _from_torchvision_vit(key: str) -> str:
    key = key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")  # as they were called before
    return _renamed(key, [(ours, theirs) for theirs, ours in _VIT_NAMES])


def _renamed(key: str, names: Iterable[tuple[str, str]]) -> str:
    """``key`` with the first old name that is in it, at its beginning or behind a prefix, replaced by the new one."""
    for old, new in names:
        pattern = r"(^|\.)" + re.escape(old).replace(r"\#", r"(\d+)")
        if re.search(pattern, key):
            return re.sub(pattern, r"\g<1>" + new.replace("#", r"\g<2>"), key, count=1)
    return key


class _Sequential:
    """``backbone.4.0.conv1.weight`` becomes ``backbone.layer1.0.conv1.weight``: lightly puts the parts of a ResNet in a
    row, those without weights among them."""

    def __init__(self, found: Iterable[str]) -> None:
        self.order: dict[str, list[int]] = {}  # the numbers that follow a prefix
        for prefix, number, _ in filter(None, map(self._split, found)):
            self.order[prefix] = sorted({*self.order.get(prefix, ()), number})

    def __call__(self, key: str) -> str | None:
        if not (parts := self._split(key)):
            return None
        prefix, number, rest = parts
        place = self.order[prefix].index(number)
        if place >= len(RESNET_PARTS):
            return None
        return f"{prefix}{RESNET_PARTS[place]}.{rest}".replace(".shortcut.", ".downsample.")

    @staticmethod
    def _split(key: str) -> tuple[str, int, str] | None:
        found = re.match(r"(.*?(?:^|\.))(\d+)\.(.+)", key)
        return found and (found[1], int(found[2]), found[3])


def flat_tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, named by the keys on the way: ``state_dict.module.fc.weight``."""
    if isinstance(value, Tensor):
        yield prefix.removesuffix("."), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat_tensors(inner, f"{prefix}{key}.")
