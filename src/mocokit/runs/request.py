"""What the user asks ``pretrain`` for, and the images that it names, opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocokit.auto.defaults import image_size_chooser
from mocokit.config import FIELDS, DeviceName, deciding
from mocokit.console import say
from mocokit.data.image_index import Source
from mocokit.data.labelled import grouped, lay_over_sample, open_labelled
from mocokit.data.sources import open_source
from mocokit.data.store import ImageSet, Store
from mocokit.data.streaming import StreamingImages, open_streaming
from mocokit.data.tiled import TiledSource
from mocokit.errors import UserError
from mocokit.machine import pick_device
from mocokit.options import flag
from mocokit.recipes import load_recipe
from mocokit.rundir import RunDirectory, run_name
from mocokit.runs.held_out import labels_of
from mocokit.training.log import check_tracker


@dataclass(frozen=True)
class Request:
    """What the user asks for: the options that are ``given``, those of the ``recipe``, the device, and whether to
    extend a finished run."""

    given: Mapping[str, Any]
    recipe: Mapping[str, Any]
    device: DeviceName
    extend: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any], extend: bool = False) -> "Request":
        """From validated options; raises `UserError` if there is no such recipe, device or experiment tracker."""
        if given.get("weights") and given.get("recipe", "auto") == "auto":
            given = {**given, "recipe": "continue"}
        recipe = load_recipe(given.get("recipe", "auto"))
        said = {**recipe, **given}
        check_tracker(said.get("logger"))
        return cls(given, recipe, pick_device(said.get("device")), extend)

    @property
    def said(self) -> dict[str, Any]:
        """What is known before the configuration is complete: the options of the recipe, and over them those given."""
        return {**self.recipe, **self.given}

    def said_or_default(self, *names: str) -> dict[str, Any]:
        """Of these options what is `said`, or else their default, by name."""
        return {name: self.said.get(name, FIELDS[name].default) for name in names}

    def open_source(self) -> Source:
        """The images, of which nothing is read yet."""
        names = ("follow_links", "max_pixels", "train", "test", "tiles")
        return open_source(self.given["data"], **self.said_or_default(*names))

    def run_directory(self, name: str) -> RunDirectory:
        """Of images of this ``name``; a `UserError` if no command would take the data by their name any more."""
        path = Path(self.given.get("out") or f"runs/{run_name(name, self.given.get('recipe', 'auto'))}")
        if path.absolute() == Path(self.given["data"]).absolute():
            raise UserError(f"--out {path}: is what the data are called; choose another --out")
        return RunDirectory(path)


@dataclass(frozen=True)
class RunData:
    """What a run learns from: ``images``, stored or streamed, and the ``store`` of those it is evaluated on."""

    store: Store
    images: ImageSet | StreamingImages

    @property
    def name(self) -> str:
        """Short name of the data."""
        return self.store.name


def open_data(
    request: Request,
    source: Source | None = None,
    cache: Path | None = None,
    report: Callable[[int, int], None] | None = None,
    image_size: int | None = None,
) -> RunData:
    """Decode the images unless the cache has them.

    Args:
        request: names the data.
        source: the images, if they are at hand.
        cache: where decoded images are kept, if not in the usual cache directory.
        report: called with the images done and in total.
        image_size: of the run that is resumed, maybe on a device for which another would be chosen.

    Raises:
        UserError, TooManySkipped: the data can't be opened, or too many images can't be used.
    """
    said = request.said
    labels = labels_of(said.get("labels"), said.get("labels_columns"))
    options = request.said_or_default("seed", "max_skipped")
    options |= {"workers": said["workers"]} if "workers" in said else {}
    options |= {
        "image_size": said.get("image_size", image_size) or image_size_chooser(request.device),
        "progress": report,
        "cache": cache,
        "to_train": True,
    }
    source = source or request.open_source()
    subset: dict[str, Any] = {name: said.get(name) for name in deciding("subset")}
    if not said.get("stream"):
        store = open_labelled(source, labels, **subset, **options)
        store = grouped(store, said.get("split_by"), labels, isinstance(source, TiledSource))
        return RunData(store, store.splits["train"])
    for name, value in subset.items():
        if value is not None:
            raise UserError(f"--stream and {flag(name)} exclude each other: a subset has room in the cache directory")
    store, images = open_streaming(source, **options)
    store = store if labels is None else lay_over_sample(store, labels, images.names)
    store = grouped(store, said.get("split_by"), labels, isinstance(source, TiledSource))
    say(f"{len(images):,} training images are read anew each epoch; a sample of them is stored to measure on")
    return RunData(store, images)
