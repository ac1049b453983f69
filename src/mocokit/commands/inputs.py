"""What the verbs after pretraining start from: an encoder file and, for most, images decoded to suit it."""

from dataclasses import dataclass
from functools import cached_property

from mocokit.commands.environment import pick_device
from mocokit.config import ImagesConfig
from mocokit.console import progress, say
from mocokit.cores import limit_threads
from mocokit.data.store import Store, open_store
from mocokit.deploy.encoder_file import load, read_header
from mocokit.errors import UserError
from mocokit.evaluation.baselines import random_encoder
from mocokit.model.encoder import Encoder, EncoderSpec


@dataclass(frozen=True)
class Inputs:
    """A run's encoder and the images to measure it on; ``seed`` is that of its initialisation."""

    run: str
    spec: EncoderSpec
    seed: int
    store: Store
    device: str

    @cached_property
    def encoder(self) -> Encoder:
        """The run's encoder, in evaluation mode."""
        return load(self.run, self.device)

    @cached_property
    def random_init(self) -> Encoder:
        """The same network as it was before training, in evaluation mode."""
        return random_encoder(self.spec, self.seed, self.store.splits["train"], self.device)


def open_inputs(config: ImagesConfig, labels_for: str | None = None) -> Inputs:
    """Read the encoder's header and decode the images, unless they are in the cache.

    Args:
        config: the verb's options.
        labels_for: what needs labels, for the error; None if nothing does.

    Raises:
        UserError: no encoder there, unusable images, or no labels where they are needed.
    """
    limit_threads()
    spec, origin = read_header(config.run)
    device = pick_device(config.device)
    with progress("decoding images") as report:
        store = open_store(
            config.data,
            image_size=spec.image_size,
            image_size_cap=spec.image_size,
            limit=config.limit,
            seed=config.seed,
            max_skipped=config.max_skipped,
            intensity_range=spec.intensity_range,
            channels=spec.channels,
            progress=report,
        )
    say(store.summary())
    if labels_for and store.label_names is None:
        raise UserError(
            f"{config.data}: {labels_for} needs labels; put the images into one folder for each class"
        )
    return Inputs(config.run, spec, origin["seed"], store, device)
