"""mocokit: learn image features without labels, and know how good they are."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mocokit.commands.knn import knn as knn
    from mocokit.commands.pretrain import pretrain as pretrain
    from mocokit.deploy.encoder import load as load
    from mocokit.errors import UserError as UserError
    from mocokit.model.encoder import Encoder as Encoder

_HOMES = {
    "Encoder": "mocokit.model.encoder",
    "UserError": "mocokit.errors",
    "knn": "mocokit.commands.knn",
    "load": "mocokit.deploy.encoder",
    "pretrain": "mocokit.commands.pretrain",
}
__all__ = ["Encoder", "UserError", "knn", "load", "pretrain"]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import mocokit`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mocokit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
