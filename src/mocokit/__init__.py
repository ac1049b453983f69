"""mocokit: learn image features without labels, and know how good they are."""

import importlib
from typing import Any

__version__ = "0.2.0"

HOMES = {
    "Encoder": "mocokit.model.encoder",
    "MoCoEncoder": "mocokit.estimator",
    "MoCoV2": "mocokit.model.moco",
    "UserError": "mocokit.errors",
    "cache": "mocokit.commands.cache",
    "create_backbone": "mocokit.model.backbones",
    "draw_views": "mocokit.preview",
    "embed": "mocokit.commands.embed",
    "export": "mocokit.commands.export",
    "finetune": "mocokit.commands.finetune",
    "knn": "mocokit.commands.knn",
    "load": "mocokit.deploy.loading",
    "open_images": "mocokit.preview",
    "pretrain": "mocokit.commands.pretrain",
    "probe": "mocokit.commands.probe",
    "read_metrics": "mocokit.preview",
    "report": "mocokit.commands.report",
    "scorecard": "mocokit.commands.scorecard",
    "search": "mocokit.commands.search",
    "select": "mocokit.commands.select",
    "split_batch_norm": "mocokit.model.norm",
    "study": "mocokit.commands.study",
}
__all__ = [*HOMES]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import mocokit`` costs nothing."""
    if name not in HOMES:
        raise AttributeError(f"module 'mocokit' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
