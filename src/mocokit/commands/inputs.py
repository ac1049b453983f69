"""The inputs that the evaluating verbs share: a run's encoder and images decoded for it."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mocokit.config import DeviceName, ImagesConfig
from mocokit.console import progress, say
from mocokit.data.image_index import Source
from mocokit.data.labelled import grouped, open_labelled
from mocokit.data.sources import open_source
from mocokit.data.store import Store
from mocokit.data.tiled import TiledSource
from mocokit.deploy.loading import load
from mocokit.errors import UserError
from mocokit.evaluation.baselines import random_encoder
from mocokit.evaluation.splits import LabelledSplits, NotSplit
from mocokit.machine import limit_threads, pick_device
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.rundir import RunDirectory
from mocokit.runs.held_out import about_test, labelled_parts, labels_of, other_held_out, other_subset, tell_test


@dataclass(frozen=True)
class Inputs:
    """An encoder, in evaluation mode, and the images to evaluate it on; ``seed`` is that of its initialisation."""

    encoder: Encoder
    source: Source
    store: Store
    device: DeviceName
    given_weights: Encoder | None  # that the run went on from, if it did
    parts: LabelledSplits | None = None  # if there are to be labels
    test: dict[str, Any] = field(default_factory=dict)  # what results say of the test images

    @property
    def spec(self) -> EncoderSpec:
        """Of the encoder."""
        return self.encoder.spec

    @property
    def seed(self) -> int:
        """Of its random initialisation."""
        return int(self.encoder.origin["seed"])

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The encoder and the networks that it is compared with, by key of results."""
        given = {"given_weights": self.given_weights} if self.given_weights else {}
        return {"encoder": self.encoder, **given, "random_init": self.random_init}

    def compared(self, baseline: bool) -> dict[str, Encoder]:
        """`encoders`, or without a ``baseline`` the encoder alone, by key of results."""
        return self.encoders if baseline else {"encoder": self.encoder}

    @cached_property
    def random_init(self) -> Encoder:
        """The same network before training, in evaluation mode."""
        return random_encoder(self.spec, self.seed, self.store.main, self.device)


def tiles_of(given: int | None, encoder: Encoder) -> int:
    """The side of tiles that images are cut into: as the user says, or else as those that the encoder has learned from;
    0 for none."""
    return int(encoder.origin.get("tiles", 0)) if given is None else given


def open_inputs(config: ImagesConfig, labels_for: str | None = None, to_train: bool = False) -> Inputs:
    """Load the encoder and decode the images that are not in the cache yet.

    A `UserError` if there is no encoder, images are unusable, none are there ``to_train`` on, or there are no labels
    to measure by ``labels_for`` what needs them.
    """
    limit_threads(config.threads)
    device = pick_device(config.device)
    encoder = load(config.run, device, backbone=config.backbone, image_size=config.image_size)
    spec = encoder.spec
    labels = labels_of(config.labels, config.labels_columns)
    tiles = tiles_of(config.tiles, encoder)
    source = open_source(config.data, config.follow_links, config.max_pixels, config.train, config.test, tiles)
    with progress("decoding images") as report:
        store = open_labelled(
            source,
            labels,
            image_size=spec.image_size,
            limit=config.limit,
            imbalance=config.imbalance,
            seed=config.seed,
            max_skipped=config.max_skipped,
            intensity_range=spec.intensity_range,
            channels=spec.channels,
            progress=report,
            to_train=to_train,
        )
    store = grouped(store, config.split_by, labels, isinstance(source, TiledSource))
    say(store.summary())
    initial = RunDirectory(Path(config.run)).initial
    inputs = Inputs(encoder, source, store, device, load(initial, device) if initial.exists() else None)
    if not labels_for:
        return inputs
    try:
        parts = labelled_parts(store, config)
    except NotSplit as why:
        raise UserError(f"{config.data}: {labels_for} needs labels: {why}") from None
    seen = encoder.origin.get("data_fingerprint") == store.train_fingerprint
    others = seen and parts.held_out and other_held_out(encoder.origin.get("held_out"), config)
    tuned_on = encoder.origin.get("source_fingerprint")
    if tuned_on and not seen and parts.held_out and tuned_on == source.fingerprint():  # which looks at every file
        held = other_held_out(encoder.origin.get("held_out"), config)  # the seed also draws the subset
        others = " ".join(filter(None, [other_subset(encoder.origin, config), held]))
    tell_test(parts, store, config, seen and not others)
    if others:
        say(f"the encoder was fine-tuned with other images held out: it knows labels of some that test; give {others}")
    return replace(inputs, parts=parts, test=about_test(parts, config))
