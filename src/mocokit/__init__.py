"""mocokit: learn image features without labels, and know how good they are."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mocokit.commands.embed import embed as embed
    from mocokit.commands.export import export as export
    from mocokit.commands.finetune import finetune as finetune
    from mocokit.commands.knn import knn as knn
    from mocokit.commands.pretrain import pretrain as pretrain
    from mocokit.commands.probe import probe as probe
    from mocokit.commands.scorecard import scorecard as scorecard
    from mocokit.commands.search import search as search
    from mocokit.deploy.encoder_file import load as load
    from mocokit.errors import UserError as UserError
    from mocokit.estimator import MoCoEncoder as MoCoEncoder
    from mocokit.model.encoder import Encoder as Encoder

_HOMES = {
    "Encoder": "mocokit.model.encoder",
    "MoCoEncoder": "mocokit.estimator",
    "UserError": "mocokit.errors",
    "embed": "mocokit.commands.embed",
    "export": "mocokit.commands.export",
    "finetune": "mocokit.commands.finetune",
    "knn": "mocokit.commands.knn",
    "load": "mocokit.deploy.encoder_file",
    "pretrain": "mocokit.commands.pretrain",
    "probe": "mocokit.commands.probe",
    "scorecard": "mocokit.commands.scorecard",
    "search": "mocokit.commands.search",
}
__all__ = [
    "Encoder",
    "MoCoEncoder",
    "UserError",
    "embed",
    "export",
    "finetune",
    "knn",
    "load",
    "pretrain",
    "probe",
    "scorecard",
    "search",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import mocokit`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mocokit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
