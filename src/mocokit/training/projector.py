"""Features for TensorBoard's embedding projector, each with its image."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TAG, DIGITS = "features", 5  # decimals of a feature's numbers: as text they take less room


def write_projector(folder: Path, features: Tensor, columns: Mapping[str, Sequence[str]], pictures: np.ndarray) -> None:
    """Write features [N, D], two or more ``columns`` of N texts, and ``pictures`` uint8 [N, S, S, 3] beside
    TensorBoard's events in ``folder``, in the place of earlier ones. Features are scaled to length 1, since their
    cosines count."""
    from torch.utils.tensorboard import SummaryWriter  # here: it would delay the start of training

    unit = torch.nn.functional.normalize(features.double())
    # A line is a row and a tab ends a column; what is not UTF-8 can't be written.
    texts = [[_text(value) for value in row] for row in zip(*columns.values(), strict=True)]
    shutil.rmtree(folder / "00000" / TAG, ignore_errors=True)  # or torch warns on stdout
    # Absolute: see `mocokit.training.log.tensorboard`.
    with SummaryWriter(str(folder.absolute())) as writer:
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        writer.add_embedding(unit.round(decimals=DIGITS), texts, images, tag=TAG, metadata_header=list(columns))


def _text(value: str) -> str:
    return " ".join(value.encode(errors="replace").decode().split()) or "-"
