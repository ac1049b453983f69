"""The encoder as one ONNX file: uint8 images in, features out, the preprocessing inside the graph.

What it computes is checked against PyTorch before the file is given its name.
"""

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mocokit
from mocokit.deploy.preprocessing import README, claim, example_file, fenced, made_by, reading_lines
from mocokit.errors import UserError
from mocokit.files import replacing
from mocokit.model.encoder import Encoder

EXTRA = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest output; float32 in another order of summation stays below 1e-5
MAX_BYTES = 2**31 - 2**24  # of weights: what one protobuf file holds, less the graph


def require_onnx() -> None:
    """See that what the export needs is installed, without importing it, or raise a UserError that says how."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}; pip install 'mocokit[onnx]'")


def export_onnx(encoder: Encoder, path: Path, origin: dict[str, Any], images: np.ndarray) -> float:
    """Write the graph ``images -> features`` or, with a classifier, ``images -> features, probabilities``.

    ``images`` is uint8 [N, H, W, C] for any N, H and W of at least 1; ``features`` float32 [N, D]; ``probabilities``
    float32 [N, K]. The file's metadata hold the spec, the classes, ``origin`` and the version of mocokit.

    Args:
        encoder: on the CPU, in evaluation mode.
        path: replaced whole; a README with the lines that run it is put beside it.
        origin: where the encoder comes from; plain values.
        images: uint8 [P, H, W, C], to check the file with.

    Returns:
        The largest absolute difference between ONNX Runtime's and PyTorch's outputs.

    Raises:
        UserError: the weights are too many for one file.
        RuntimeError: the difference is more than `TOLERANCE` of the largest output; no file is written.
    """
    nbytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    if nbytes > MAX_BYTES:
        raise UserError(f"{nbytes / 1e9:.1f} GB of weights do not fit into one ONNX file; use --format timm")
    program = _trace(encoder)
    facts = {"spec": encoder.spec.to_dict(), "classes": encoder.classes, "origin": origin}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    program.model.metadata_props["mocokit"] = mocokit.__version__
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    content = program.model_proto.SerializeToString()
    difference = _check(encoder, content, images)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    with replacing(path.with_name(README)) as temporary:
        temporary.write_text(_readme(encoder, path.name), encoding="utf-8")
    return difference


def using_lines(encoder: Encoder, file: str) -> str:
    """Python that runs ``file`` on an image file without mocokit, by ONNX Runtime and Pillow."""
    outputs, first = ("features", "[0]") if encoder.classifier is None else ("features, probabilities", "")
    return (
        f"{reading_lines(encoder.spec)}"
        "import onnxruntime\n"
        f"session = onnxruntime.InferenceSession({file!r})\n"
        f'images = read_image("{example_file(encoder.spec)}")[None]\n'
        f'{outputs} = session.run(None, {{"images": images}}){first}\n'
    )


def _readme(encoder: Encoder, name: str) -> str:
    spec, K = encoder.spec, len(encoder.classes)
    parts = [
        f"{name}: {made_by(encoder)}. "
        f"Of uint8 images [N, H, W, {spec.channels}] it gives features [N, {encoder.dim}]"
        + (f" and probabilities [N, {K}] of the classes in its metadata." if K else "."),
        "To use it with ONNX Runtime, in this directory:",
        fenced(using_lines(encoder, name)),
        claim(spec, "features"),
    ]
    return "\n\n".join(parts) + "\n"


class OnnxEncoder(nn.Module):
    """What is exported: `mocokit.data.augment.center_view` for a batch of one size, backbone and classifier.

    The filters are built from the size of the images by ordinary operations, so that they are ours in every
    runtime; ONNX's own Resize leaves its antialiasing to the runtime.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone, self.classifier, self.size = encoder.backbone, encoder.classifier, encoder.spec.image_size
        self.crop, self.cubic = encoder.spec.crop_share, encoder.spec.interpolation == "bicubic"
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (encoder.spec.mean, encoder.spec.std))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 [N, H, W, C] -> features [N, D] and, with a classifier, probabilities [N, K]."""
        H, W = images.shape[1:3]
        height, width = (torch.full((), extent, dtype=torch.float32) for extent in (H, W))
        side = torch.minimum(height, width)
        if self.crop < 1:
            side = (side * self.crop).round().clamp(min=1)
        rows = self._filters(torch.arange(H), ((height - side) / 2).round(), side)  # [size, H]
        columns = self._filters(torch.arange(W), ((width - side) / 2).round(), side)  # [size, W]
        x = images.permute(0, 3, 1, 2).float() / 255  # [N, C, H, W]
        x = rows @ (x @ columns.mT)  # [N, C, size, size]
        features = self.backbone((x - self.mean) / self.std).float()
        if self.classifier is None:
            return (features,)
        return features, self.classifier(features).softmax(dim=1)

    def _filters(self, pixel: Tensor, start: Tensor, side: Tensor) -> Tensor:
        """Filters from ``side`` pixels at ``start`` to `size` pixels: [size, pixels], rows sum to 1.

        Positions are counted in input pixels when enlarging, in output pixels when reducing. Products of whole
        numbers are divided once, so float32 places them as exactly as float64 would.
        """
        source = pixel - start
        inside = (source >= 0) & (source < side)
        longer = side.clamp(min=self.size)
        source = (source + 0.5) * self.size / longer  # [pixels]
        target = (torch.arange(self.size) + 0.5) * side / longer  # [size]
        distance = (source - target[:, None]).abs()
        weights = (1 - distance).clamp(min=0)
        if self.cubic:
            distance = distance.clamp(max=2)
            near = (1.5 * distance - 2.5) * distance * distance + 1
            far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
            weights = torch.where(distance < 1, near, far)
        weights = weights * inside
        return weights / weights.sum(dim=1, keepdim=True)


def _trace(encoder: Encoder) -> "torch.onnx.ONNXProgram":
    size, channels = encoder.spec.image_size, encoder.spec.channels
    any_size = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(("N", "H", "W"))}
    # Sizes of an example must differ from each other and from 1, or they are taken for constants.
    example = torch.zeros(2, size + 3, size + 5, channels, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own workings
        program = torch.onnx.export(
            OnnxEncoder(encoder).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=(any_size,),
            input_names=["images"],
            output_names=["features"] if encoder.classifier is None else ["features", "probabilities"],
            verbose=False,
        )
    assert program is not None
    return program


def _check(encoder: Encoder, content: bytes, images: np.ndarray) -> float:
    """The largest difference of the file's outputs from PyTorch's; RuntimeError if it is beyond the tolerance."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in _batches(images, encoder.spec.image_size):
        what = f"on images of shape {batch.shape} the ONNX graph of {encoder.spec.backbone} differs from PyTorch"
        for found, expected in zip(session.run(None, {"images": batch}), _expected(encoder, batch), strict=True):
            largest = max(largest, largest_difference(found, expected, TOLERANCE, what))
    return largest


def largest_difference(found: Any, expected: Any, tolerance: float, what: str) -> float:
    """Of two arrays, absolute; RuntimeError if it is more than ``tolerance`` of the largest expected value."""
    difference, scale = float(abs(found - expected).max()), float(abs(expected).max())
    if not difference <= tolerance * scale:
        raise RuntimeError(f"{what} by {difference:.2g}, where outputs reach {scale:.2g}; nothing was written")
    return difference


@torch.inference_mode()
def _expected(encoder: Encoder, images: np.ndarray) -> list[np.ndarray]:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    features = encoder(pixels, torch.tensor([images.shape[1:3]] * len(images)))
    outputs = [features] if encoder.classifier is None else [features, encoder.probabilities(features)]
    return [output.numpy() for output in outputs]


def _batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Batches of 1, 7 and 64 images, tiled or cut to sizes around the encoder's, square and not."""
    P, H, W = images.shape[:3]
    third, half, twice = max(1, size // 3), max(1, size // 2), 2 * size + 1
    for n, h, w in ((1, size, size), (1, twice, size + 3), (1, half, third), (7, half, twice), (64, size, size)):
        yield images[np.ix_(np.arange(n) % P, np.arange(h) % H, np.arange(w) % W)]
