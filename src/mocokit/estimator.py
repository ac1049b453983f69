"""Pretraining as a scikit-learn transformer: fit learns an encoder from images, transform embeds them.

A top layer beside the command line, for pipelines, cross-validation and grid search; its runs leave no files.
"""

import copy
import hashlib
import math
import numbers
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from joblib import Memory
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, check_memory, validate_data

from mocokit.auto.defaults import MIN_IMAGES
from mocokit.config import FIELDS, PretrainConfig, deciding
from mocokit.data.arrays import ImageListSource, channels_first, is_one_picture
from mocokit.data.pixels import ASSUMED
from mocokit.data.store import TooManySkipped
from mocokit.errors import Interrupted, UserError
from mocokit.machine import pick_device, versions
from mocokit.model.encoder import Encoder, encoder_spec
from mocokit.options import checked_options
from mocokit.recipes import load_recipe
from mocokit.rundir import RunDirectory
from mocokit.runs.configuration import complete_config
from mocokit.runs.request import Request, open_data
from mocokit.training.log import Row, announcer
from mocokit.training.pretraining import Pretraining, train

BYTE_RANGE, UNIT_RANGE = (0.0, 255.0), (0.0, 1.0)  # what the values of 8-bit images mean, and others' from 0 to 1
# Options of a recipe that a fit, which is handed its images, has no use for.
NO_FILES = ("weights", *deciding("labels"), "split_by", "tiles", "stream")


@dataclass(kw_only=True, eq=False, repr=False)  # scikit-learn prints it, and compares by identity
class MoCoEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Image features learned without labels by Momentum Contrast.

    Images (``X`` of `fit` and `transform`) are one of

    - an array [N, H, W] or [N, H, W, C] of whole numbers or floats, C being any number of channels;
    - a list of arrays [H, W] or [H, W, C], of PIL images, or of paths of image files, each of any size;
    - an array [N, H * W * C] whose rows are flattened images, see ``image_shape``.

    uint8 arrays and 8-bit files mean 0 to 255, and what lies from 0 to 1 at `fit` that. Of other images the lowest and
    the highest values at `fit`, but for a thousandth of the pixels, are black and white, also for `transform`: equal
    values are equally bright, in whatever company.

    Args:
        recipe: ``auto``, a recipe's name or a recipe file, which may set any option of `mocokit.pretrain` that
            does not name images or weights.
        backbone: timm model name; None chooses by image size and device.
        image_size: side of the square that the network sees, in pixels; None chooses by the images.
        epochs: passes over the images; None chooses by their number.
        steps: optimizer steps, instead of epochs.
        time_budget: wall time of `fit` instead of either, for example ``"90s"`` or ``"6m"``.
        batch_size: images a step; None chooses by their number.
        lr: peak learning rate of SGD; None chooses by the batch size.
        temperature: of the softmax in InfoNCE; None chooses by the image size.
        crop_min: smallest share of the image's area that a view shows; None chooses by the image size.
        flip_p: probability of a horizontal flip; None is 0.5 for colour and 0 for other images.
        image_shape: (H, W) or (H, W, C) of the rows of a two-dimensional ``X``; None takes them for square gray
            images if their length is a square, else for a single row of pixels.
        device: ``cpu``, ``cuda`` or ``mps``; None takes the fastest here.
        random_state: an int is the seed of ``mocokit pretrain --seed``; see scikit-learn's glossary for others.
        verbose: tell on stderr how training goes.
        memory: a directory or `joblib.Memory` that keeps what `fit` learned, as in scikit-learn's Pipeline: another
            `fit` with equal images, parameters and versions of the packages takes it from there. None keeps nothing.

    Attributes:
        encoder_: the `mocokit.Encoder`, on the CPU.
        history_: dicts, rows of a run's metrics.csv without what is empty there: step, epoch, loss, lr, ...
        image_shape_: shape of each image in the rows of a two-dimensional ``X``; else None.
        n_features_in_: the length of those rows; only with a two-dimensional ``X``.
        feature_names_in_: names of the columns, if ``X`` was a DataFrame.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.model_selection import cross_val_score
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from mocokit import MoCoEncoder
        >>> images, labels = load_digits(return_X_y=True)  # rows of 64 pixels
        >>> encoder = MoCoEncoder(epochs=1, device="cpu")  # takes a second, and is worth no more
        >>> classifier = make_pipeline(encoder, StandardScaler(), LogisticRegression(max_iter=200))
        >>> scores = cross_val_score(classifier, images[:500], labels[:500], cv=2)
        >>> bool(scores.mean() > 0.4)
        True
    """

    recipe: str = "auto"
    backbone: str | None = None
    image_size: int | None = None
    epochs: int | None = None
    steps: int | None = None
    time_budget: str | None = None
    batch_size: int | None = None
    lr: float | None = None
    temperature: float | None = None
    crop_min: float | None = None
    flip_p: float | None = None
    image_shape: tuple[int, ...] | None = None
    device: str | None = None
    random_state: int | np.random.RandomState | None = 0
    verbose: bool = False
    memory: str | Path | Memory | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn an encoder from at least 8 images; ``y`` is ignored.

        Raises:
            ValueError: an option or an image is wrong, or there are too few images.
            KeyboardInterrupt: training was stopped by a signal.
        """
        started = time.perf_counter()
        images = self._images(X, reset=True)
        if (count := len(images)) < MIN_IMAGES:
            raise ValueError(
                f"MoCo contrasts an image with others and needs at least {MIN_IMAGES}; got n_samples = {count}"
            )
        with _sklearn_errors():
            options = self._options()
            memory = check_memory(str(self.memory) if isinstance(self.memory, Path) else self.memory)
            learn = memory.cache(_pretrain, ignore=["verbose", "started"])
            context = None if self.memory is None else _context(images, options)
            self.encoder_, self.history_ = learn(images, options, context, self.verbose, started)
        self._n_features_out = self.encoder_.dim
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features [N, D] float32 of images as in `fit`.

        Raises:
            NotFittedError: `fit` comes first.
            ValueError: an image is wrong, or its channels are not those of `fit`.
        """
        check_is_fitted(self)
        images = self._images(X, reset=False)
        with _sklearn_errors():
            # A copy, so that calls in several threads do not move each other's weights.
            encoder = copy.deepcopy(self.encoder_).to(pick_device(self.device))
            _warn_of_range(images, encoder.spec.intensity_range)
            return encoder.embed(images).numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # float32 always
        return tags

    def _images(self, X: Any, reset: bool) -> list[Any]:
        """The images one by one; `fit` says ``reset``."""
        if not _is_listed(X) and _ndim(X) < 3:
            return self._rows(X, reset)
        if reset:  # an earlier fit on rows leaves nothing
            self.image_shape_: tuple[int, ...] | None = None
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
        if _is_listed(X):
            return list(X)
        X = check_array(X, allow_nd=True, input_name="X")
        if is_one_picture(X.shape) and (reset or X.shape[2] == self.encoder_.spec.channels):
            raise ValueError(f"X {list(X.shape)} seems to be one picture; give X[None]")
        if channels_first(X.shape):
            raise ValueError(f"X {list(X.shape)} seems to have its channels first; give numpy.moveaxis(X, 1, -1)")
        return list(X)

    def _rows(self, X: Any, reset: bool) -> list[Any]:
        """The images in the rows of ``X``."""
        least = 2 if reset else 1  # of one pixel there are no two views
        X = validate_data(self, X, reset=reset, ensure_min_samples=least, ensure_min_features=least)
        if reset:
            self.image_shape_ = self._row_shape(X.shape[1])
        return list(X.reshape(len(X), *(self.image_shape_ or self._row_shape(X.shape[1]))))

    def _row_shape(self, length: int) -> tuple[int, ...]:
        """(H, W) or (H, W, C) of an image in a row of ``length`` numbers."""
        if self.image_shape is None:
            side = math.isqrt(length)
            return (side, side) if side**2 == length else (1, length)
        shape = tuple(np.atleast_1d(self.image_shape).tolist())
        if len(shape) not in (2, 3) or math.prod(shape) != length:
            raise ValueError(f"image_shape {shape} does not fit rows of {length} numbers; it is (H, W) or (H, W, C)")
        return shape

    def _options(self) -> dict[str, Any]:
        """Those of `mocokit.pretrain`: this estimator's, and what a run without files needs."""
        options = {name: value for name, value in self.get_params().items() if name in FIELDS}
        seed: Any = self.random_state
        if not isinstance(seed, numbers.Integral):
            seed = check_random_state(seed).randint(2**31)
        options["seed"] = int(seed)
        options |= {"data": "X", "monitor_every": 0, "histograms": False, "workers": 0, "max_skipped": 0.0}
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
        return checked_options(PretrainConfig, plain)


def _ndim(X: Any) -> int:
    return int(X.ndim) if hasattr(X, "ndim") else np.asarray(X).ndim


def _is_listed(X: Any) -> bool:
    """Whether ``X`` is one-dimensional and holds paths, PIL images or arrays of images."""
    if isinstance(X, str) or getattr(X, "ndim", 1) != 1 or not hasattr(X, "__len__") or not len(X):
        return False
    first = next(iter(X))
    return isinstance(first, str | Path | Image.Image) or getattr(first, "ndim", 0) in (2, 3)


def _context(images: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """What a fit depends on beside its arguments: the content of files, of the recipe, and versions."""
    files = [Path(image) for image in images if isinstance(image, str | Path)]
    digests = [hashlib.blake2b(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return {"files": digests, "recipe": dict(load_recipe(options.get("recipe", "auto"))), "versions": versions()}


def _pretrain(
    images: list[Any], options: dict[str, Any], context: dict[str, Any] | None, verbose: bool, started: float
) -> tuple[Encoder, list[Row]]:
    """The steps of `mocokit.pretrain` without its evaluation, in a directory that is then removed; ``context`` is for
    who keeps the result."""
    request, rows = Request.of(options), list[Row]()
    if wrong := [name for name in NO_FILES if name in request.recipe]:
        raise UserError(f"recipe {options['recipe']}: {', '.join(wrong)} can't be used here; take mocokit.pretrain")
    with tempfile.TemporaryDirectory(prefix="mocokit-", ignore_cleanup_errors=True) as name:
        data = open_data(request, ImageListSource(images), cache=Path(name))
        resolved = complete_config(request, data, started)
        config = resolved.config
        task = Pretraining(config, encoder_spec(data.store, config))
        tell = announcer(lambda: task.config) if verbose else lambda row: None

        def announce(row: Row) -> None:
            if "loss" in row:
                rows.append(row)
                tell(row)

        run = RunDirectory(Path(name) / "run")
        train(task, data.images, run, lambda encoder, step: {}, announce, timetable=resolved.timetable)
    # Numbers from 0 to 1 were taken for such; where there are 8-bit images, too, each is read for itself.
    deep = all(getattr(image, "dtype", np.uint8) != np.uint8 for image in images)
    assumed = any(ASSUMED in note for note in data.store.notes)
    values = BYTE_RANGE if not assumed else UNIT_RANGE if deep else None
    spec = replace(task.spec, intensity_range=task.spec.intensity_range or values)
    encoder = Encoder.create(spec)
    encoder.backbone.load_state_dict(task.moco.backbone.state_dict())
    return encoder.eval(), rows


def _warn_of_range(images: list[Any], fitted: tuple[float, float] | None) -> None:
    """Where values of a fit meant 0 to 255, and all of these lie from 0 to 1, or the other way round."""
    values = [image for image in images if isinstance(image, np.ndarray) and image.dtype != np.uint8 and image.size]
    if fitted not in (BYTE_RANGE, UNIT_RANGE) or not values:
        return
    highest = max(float(image.max()) for image in values)
    if 0 < highest <= 1 if fitted == BYTE_RANGE else highest > 2:
        meant = f"those of fit were taken for {fitted[0]:g} to {fitted[1]:g}"
        warnings.warn(f"X goes up to {highest:g}, where {meant}: give values of one range to both", stacklevel=3)


@contextmanager
def _sklearn_errors() -> Iterator[None]:
    """What scikit-learn expects to be raised."""
    try:
        yield
    except TooManySkipped as error:
        name, reason = error.skipped[0]
        raise ValueError(f"{name}: {reason}") from error
    except UserError as error:
        raise ValueError(str(error)) from error
    except Interrupted as error:
        raise KeyboardInterrupt(str(error)) from error
