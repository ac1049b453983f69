"""``mocokit export RUN --format timm|onnx``: an encoder for those who do not have mocokit."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mocokit.commands.results import record
from mocokit.config import ExportConfig
from mocokit.console import progress, say
from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from mocokit.deploy import export_onnx, export_timm
from mocokit.deploy.loading import home_of, load
from mocokit.deploy.preprocessing import README
from mocokit.errors import UserError
from mocokit.model.encoder import EncoderSpec
from mocokit.options import config_of, documented
from mocokit.outputs import check_no_file, writing

CHECK_IMAGES = 64  # that the export is checked with
ONNX_FILE = "encoder.onnx"
FILES = {"timm": export_timm.FILES, "onnx": (ONNX_FILE, README)}


@documented(ExportConfig)
def export(run: str, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Write the encoder in a form that timm or ONNX Runtime loads alone, checked against PyTorch.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes; a fine-tuned encoder brings its classifier.
        overwrite: replace an earlier export.
        options: any other field of `mocokit.config.ExportConfig`; ``format`` is required.

    Returns:
        ``path`` of the directory (timm) or file (onnx), ``format``, ``max_abs_diff``: the largest difference from
        the encoder's outputs; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no encoder there, it gives no finite numbers, an export is already there, a package is missing, or a
            wrong option.
        RuntimeError: the export does not compute what the encoder does; it is not written.
    """
    started = time.perf_counter()
    config = config_of(ExportConfig, run=run, **options)
    if config.format == "onnx":
        export_onnx.require_onnx()
    folder = Path(config.output or home_of(config.run) / "export" / config.format)
    _refuse_existing(folder, FILES[config.format], overwrite)
    encoder = load(config.run, backbone=config.backbone, image_size=config.image_size)
    origin = dict(encoder.origin)
    images, fingerprint = _check_images(config, encoder.spec)
    encoder.embed(images)  # refuses an encoder that gives no numbers, which nothing compares with
    with writing(folder):
        if config.format == "timm":
            path = folder
            difference = export_timm.export_timm(encoder, path, origin, torch.from_numpy(images))
            lines = export_timm.using_lines(encoder, path.as_posix())
        else:
            path = folder / ONNX_FILE
            difference = export_onnx.export_onnx(encoder, path, origin, images)
            lines = export_onnx.using_lines(encoder, path.as_posix())
    say(f"{path}: {encoder.spec.backbone}; largest difference from PyTorch's outputs {difference:.1e}")
    say(f"to use it in Python:\n\n{lines.rstrip()}")
    figures = {"path": str(path), "format": config.format, "max_abs_diff": difference}
    return record("export", config.run, config, figures, started, fingerprint)


def _refuse_existing(folder: Path, names: tuple[str, ...], overwrite: bool) -> None:
    check_no_file("--output", folder)
    existing = [folder / name for name in names if (folder / name).exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]}: is already there; --overwrite replaces it, --output writes elsewhere")


def _check_images(config: ExportConfig, spec: EncoderSpec) -> tuple[np.ndarray, str | None]:
    """Images [P, H, W, C] uint8 to check with, and the fingerprint of the data they are from."""
    if config.data is None:
        return synthetic_images(spec.channels), None
    with progress("decoding images") as report:
        store = open_store(
            open_source(config.data, config.follow_links, config.max_pixels),
            image_size=spec.image_size,
            limit=CHECK_IMAGES,
            intensity_range=spec.intensity_range,
            channels=spec.channels,
            max_skipped=1.0,
            progress=report,
        )
    images = store.main
    rows = np.arange(min(CHECK_IMAGES, len(images)))
    height, width = images.sizes[rows].min(axis=0)  # what all of them have
    return images.batch(rows)[:, :, :height, :width].transpose(0, 2, 3, 1), store.fingerprint


def synthetic_images(channels: int) -> np.ndarray:
    """Smooth random images: uint8 [64, 72, 96, C]."""
    coarse = torch.rand(CHECK_IMAGES, channels, 6, 8, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, (72, 96), mode="bicubic").clamp(0, 1) * 255
    return smooth.byte().numpy().transpose(0, 2, 3, 1)
