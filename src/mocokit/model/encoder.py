"""An encoder: a backbone together with the preprocessing its images need."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mocokit.config import MAX_IMAGE_SIZE, PretrainConfig
from mocokit.data.augment import center_view, usual_crop
from mocokit.data.decode import decode
from mocokit.data.pillow import BadImage, decode_pillow, filled, shrink
from mocokit.data.pixels import convert, convertible, in_unit, pad, stored_side
from mocokit.data.sampler import torch_seeded
from mocokit.data.statistics import channel_statistics
from mocokit.data.store import Store
from mocokit.data.view_operations import Interpolation
from mocokit.errors import UserError
from mocokit.model.backbones import create_backbone, feature_dim
from mocokit.model.folding import folded


@dataclass(frozen=True)
class EncoderSpec:
    """All that rebuilds an encoder around its weights.

    ``mean`` and ``std`` are per channel, of pixels scaled to 0..1. ``intensity_range`` is what 0 and 255 stand for in
    images of more than 8 bits, or None if there were none. ``zero_init_last`` is of the weights that it started from:
    whether residual branches ended in a batch norm of zeros. ``crop`` is the share of the shorter side that is looked
    at, None for the usual one, and ``interpolation`` how that is resized; both are of the weights that others trained.
    """

    backbone: str
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    intensity_range: tuple[float, float] | None = None
    zero_init_last: bool = True
    crop: float | None = None
    interpolation: Interpolation = "bilinear"

    @property
    def crop_share(self) -> float:
        """``crop``, or the usual one."""
        return usual_crop(self.image_size) if self.crop is None else self.crop

    def view(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The input of the backbone, float32 [B, C, S, S]; see `mocokit.data.augment.center_view`."""
        return center_view(images, sizes, self.image_size, self.mean, self.std, self.crop, self.interpolation)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EncoderSpec":
        """Inverse of `to_dict`, also after a way through JSON; raises KeyError, TypeError or ValueError for others."""
        deep = values["intensity_range"]
        spec = cls(
            backbone=str(values["backbone"]),
            image_size=int(values["image_size"]),
            channels=int(values["channels"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            intensity_range=None if deep is None else (float(deep[0]), float(deep[1])),
            zero_init_last=bool(values["zero_init_last"]),
            crop=None if values["crop"] is None else float(values["crop"]),
            interpolation=values["interpolation"],
        )
        if spec.interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation {spec.interpolation}")
        if not 0 < spec.crop_share <= 1:
            raise ValueError(f"crop {spec.crop}")
        if not 0 < spec.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image size {spec.image_size}")
        if not 0 < spec.channels == len(spec.mean) == len(spec.std):
            raise ValueError(f"{spec.channels} channels, {len(spec.mean)} means")
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def encoder_spec(store: Store, config: PretrainConfig, start: EncoderSpec | None = None) -> EncoderSpec:
    """The encoder that a run on ``store`` trains; its images are prepared as those that it was trained on at the
    ``start``, if it was. Of another number of channels each has the mean of those."""
    size, channels, deep = config.image_size, store.channels, store.intensity_range
    if start is None:
        mean, std = channel_statistics(store.splits["train"])
        return EncoderSpec(config.backbone, size, channels, mean, std, deep, config.zero_init_last)
    mean, std = start.mean, start.std
    if channels != start.channels:
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    zero = config.zero_init_last
    spec = replace(start, image_size=size, channels=channels, intensity_range=deep, zero_init_last=zero)
    return replace(spec, mean=mean, std=std)


class NonFiniteFeatures(UserError):
    """An encoder gives features that are infinite or not a number."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} gives features that are infinite or not a number; train it again with a lower --lr")


class Encoder(nn.Module):
    """Images in, features out. ``encoder(images, sizes)`` takes what the store holds, `embed` anything.

    A fine-tuned encoder also has a ``classifier`` on its features and the names of its ``classes``. Messages call it by
    its ``name``, such as the file that it is from; its ``origin`` is what that says, with the ``seed`` of its random
    initialisation.
    """

    name = "the encoder"
    origin: Mapping[str, Any] = MappingProxyType({"seed": 0})

    def __init__(
        self, backbone: nn.Module, spec: EncoderSpec, classifier: nn.Linear | None = None, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec
        self.classifier, self.classes = classifier, classes
        self.dim = feature_dim(backbone)

    @classmethod
    def create(cls, spec: EncoderSpec, seed: int = 0) -> "Encoder":
        """A randomly initialised encoder, a function of its spec and the seed."""
        with torch_seeded(seed, "init"):
            return cls(create_backbone(spec.backbone, spec.channels, spec.image_size, spec.zero_init_last), spec)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weights.device

    @property
    def _weights(self) -> Tensor:
        """Some of the weights, which views have the device and dtype of; none of a backbone without."""
        return next(self.backbone.parameters(), torch.empty(0))

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Features [B, D] float32 of uint8 images [B, C, H, W] whose true (height, width) are ``sizes`` [B, 2].

        The largest centered square is resized to the encoder's input size and normalised.
        """
        features: Tensor = self.backbone(self.spec.view(images, sizes).to(self._weights.dtype))
        return features.float()

    def for_evaluation(self) -> "Encoder":
        """An encoder that gives the same features up to rounding, faster, and can't be trained."""
        C, S = self.spec.channels, self.spec.image_size
        x = torch.randn(2, C, S, S, generator=torch.Generator().manual_seed(0))
        encoder = Encoder(folded(self.backbone, x.to(self._weights)), self.spec, self.classifier, self.classes)
        encoder.name = self.name
        return encoder

    def checked(self, features: Tensor) -> Tensor:
        """``features`` that it gave; raises `NonFiniteFeatures` if any is infinite or not a number."""
        if not features.isfinite().all():
            raise NonFiniteFeatures(self.name)
        return features

    @torch.no_grad()
    def embed(self, images: Any, batch_size: int = 256) -> Tensor:
        """Features [N, D] float32, on the CPU, of images of any size, in order.

        Several threads may call it at once in evaluation mode, which `mocokit.load` gives; from training mode it goes
        there and back.

        Args:
            images: one image or several: paths, PIL images, arrays [H, W], [H, W, C] or a batch
                [N, H, W, C], or tensors [C, H, W] or [N, C, H, W]. An encoder of 8-bit images takes uint8, uint16
                (in full: 65535 is white) and floats from 0 to 1, so a picture has the same features in each; an
                encoder of deeper images takes uint8, or numbers in the units of its ``spec.intensity_range``.
            batch_size: images encoded at once, at least 1.

        Raises:
            UserError: an image can't be read or has another number of channels than the encoder, or features are
                infinite or not a number.
        """
        if batch_size < 1:
            raise UserError(f"embed: batch_size {batch_size} is too small; the least is 1")
        parts, images = [torch.empty(0, self.dim)], enumerate(_images(images))
        with evaluating(self):
            while chunk := list(itertools.islice(images, batch_size)):
                pixels, sizes = pad([self._pixels(image, index) for index, image in chunk])
                features = self(torch.from_numpy(pixels).to(self.device), torch.from_numpy(sizes))
                parts.append(self.checked(features.cpu()))
        return torch.cat(parts)

    def classify(self, images: Any, batch_size: int = 256) -> Tensor:
        """Probabilities [N, len(classes)] float32, on the CPU, of images as for `embed`.

        Raises:
            UserError: as `embed`, or the encoder has no classifier.
        """
        if self.classifier is None:
            raise UserError("this encoder has no classifier; train one with mocokit finetune")
        return self.probabilities(self.embed(images, batch_size))

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """What the classifier makes of features [N, D]: probabilities [N, len(classes)] float32, on the CPU."""
        assert self.classifier is not None
        return self.classifier(features.to(self.classifier.weight)).float().softmax(dim=1).cpu()

    def _pixels(self, image: Any, index: int) -> np.ndarray:
        """One image of several as uint8 [C, H, W] with the encoder's number of channels."""
        channels, intensity_range = self.spec.channels, self.spec.intensity_range
        name = str(image) if isinstance(image, str | Path) else f"image {index}, a {type(image).__name__}"
        try:
            pixels = _decoded(image, stored_side(self.spec.image_size), intensity_range is None)
            if not convertible(len(pixels), channels):
                raise BadImage(f"{len(pixels)} channels where the encoder takes {channels}")
            return convert(pixels, channels, intensity_range)
        except (OSError, BadImage) as error:
            raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def _decoded(image: Any, max_side: int, for_bytes: bool) -> np.ndarray:
    """Any one image as [C, H, W], uint8 or, if it is deeper, float32; ``for_bytes``: for an encoder of 8-bit images."""
    if isinstance(image, str | Path):
        return decode(Path(image).read_bytes(), max_side)
    if isinstance(image, Image.Image):
        image.load()  # what is not may be read smaller, and would stay so
        return decode_pillow(image, max_side)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        pixels = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    else:
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    if pixels.ndim != 3 or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise BadImage(f"expected one image, got {pixels.dtype} of shape {pixels.shape}")
    if pixels.dtype != np.uint8:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            deep = filled(pixels.astype(np.float32))  # as of files
        if for_bytes and pixels.dtype.kind == "f" and not in_unit(deep.min(), deep.max()):
            raise BadImage(f"{pixels.dtype} from {deep.min():g} to {deep.max():g}, where 0 to 1 is expected")
        if for_bytes and pixels.dtype.kind in "ui" and pixels.dtype != np.uint16:
            raise BadImage(f"{pixels.dtype} pixels, where uint8, uint16 or floats from 0 to 1 are expected")
        # Of 16 bits the dtype is known here: a dark image is not mistaken for one from 0 to 1.
        pixels = deep / np.float32(65535 if for_bytes and pixels.dtype == np.uint16 else 1)
    return shrink(pixels, max_side)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


def _images(images: Any) -> Iterable[Any]:
    """Single images become lists of one; batches of arrays iterate over their first axis."""
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        return [images] if images.ndim == 3 else images
    if isinstance(images, np.ndarray) and images.dtype.kind not in "UO":  # those are of paths
        return images if images.ndim == 4 else [images]
    return [images] if isinstance(images, str | Path | Image.Image) else images
