"""The inputs that the evaluating verbs share: a run's encoder and images decoded for it."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mocokit.commands.parts import about_test, labelled_parts, labels_of
from mocokit.config import DeviceName, ImagesConfig
from mocokit.console import progress, say
from mocokit.data.labelled import grouped, open_labelled
from mocokit.data.sources import open_source
from mocokit.data.store import Store
from mocokit.deploy.encoder_file import load, read_header
from mocokit.errors import UserError
from mocokit.evaluation.baselines import random_encoder
from mocokit.evaluation.splits import LabelledSplits
from mocokit.machine import limit_threads, pick_device
from mocokit.model.encoder import Encoder, EncoderSpec


@dataclass(frozen=True)
class Inputs:
    """A run's encoder and the images to evaluate it on; ``seed`` is that of its initialisation."""

    run: str
    spec: EncoderSpec
    seed: int
    store: Store
    device: DeviceName
    parts: LabelledSplits | None = None  # if there are to be labels
    test: dict[str, Any] = field(default_factory=dict)  # what results say of the test images

    @cached_property
    def encoder(self) -> Encoder:
        """The run's encoder, in evaluation mode."""
        return load(self.run, self.device)

    @cached_property
    def random_init(self) -> Encoder:
        """The same network before training, in evaluation mode."""
        return random_encoder(self.spec, self.seed, self.store.main, self.device)


def open_inputs(config: ImagesConfig, labels_for: str | None = None, to_train: bool = False) -> Inputs:
    """Read the encoder's header and decode the images that are not in the cache yet.

    A `UserError` if there is no encoder, images are unusable, none are there ``to_train`` on, or there are no labels
    to measure by ``labels_for`` what needs them.
    """
    limit_threads()
    spec, origin = read_header(config.run)
    device = pick_device(config.device)
    labels = labels_of(config.labels, config.labels_columns)
    with progress("decoding images") as report:
        store = open_labelled(
            open_source(config.data, config.follow_links, config.max_pixels, config.train, config.test),
            labels,
            image_size=spec.image_size,
            limit=config.limit,
            seed=config.seed,
            max_skipped=config.max_skipped,
            intensity_range=spec.intensity_range,
            channels=spec.channels,
            progress=report,
            to_train=to_train,
        )
    store = grouped(store, config.split_by, labels)
    say(store.summary())
    inputs = Inputs(config.run, spec, origin["seed"], store, device)
    if not labels_for:
        return inputs
    parts = labelled_parts(store, config)
    if isinstance(parts, str):
        raise UserError(f"{config.data}: {labels_for} needs labels: {parts}")
    test = about_test(parts, store, config, seen=origin.get("data_fingerprint") == store.train_fingerprint)
    return replace(inputs, parts=parts, test=test)
