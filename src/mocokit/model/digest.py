"""Digest of tensors and plain values: stored in checkpoints and encoder files, and checked before these are used."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(value: Any) -> str:
    """Hexadecimal digest of nested dictionaries, lists and tuples of tensors, numbers, text and None.

    Types, names and their order count, as do the versions that a module's state dict carries.

    Raises:
        TypeError: there is something else in it.
    """
    hashed = hashlib.blake2b(digest_size=16)
    _feed(hashed, value)
    return hashed.hexdigest()


def _feed(hashed: hashlib.blake2b, value: Any) -> None:
    # Each line says how much follows, so that no two values feed the same bytes.
    if isinstance(value, Tensor):
        hashed.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        hashed.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        hashed.update(f"mapping {len(value)}\n".encode())
        for name, item in value.items():
            _feed(hashed, name)
            _feed(hashed, item)
        _feed(hashed, getattr(value, "_metadata", None))  # of torch's state dicts
    elif isinstance(value, list | tuple):
        hashed.update(f"{'list' if isinstance(value, list) else 'tuple'} {len(value)}\n".encode())
        for item in value:
            _feed(hashed, item)
    elif value is None or isinstance(value, bool | int | float | str):
        hashed.update(f"{value!r}\n".encode(errors="backslashreplace"))
    else:
        raise TypeError(f"a {type(value).__name__} where tensors and plain values were expected")
