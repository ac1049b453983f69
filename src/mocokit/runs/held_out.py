"""Which images train and test what is measured: the same in every verb, and told in the same words."""

from collections.abc import Mapping
from contextlib import suppress
from shlex import quote
from typing import Any

from mocokit.config import ImagesConfig, PretrainConfig
from mocokit.console import say
from mocokit.data.labels_file import LabelsFile, read_labels
from mocokit.data.notes import count
from mocokit.data.store import Store
from mocokit.errors import UserError
from mocokit.evaluation.near_duplicates import near_duplicates
from mocokit.evaluation.splits import SHARE, LabelledSplits, NotSplit, split_labelled


def labels_of(path: str | None, columns: str | None) -> LabelsFile | None:
    """The file that ``--labels`` names, if it does."""
    if path is None and columns is not None:
        raise UserError(f"--labels-columns {columns}: needs --labels, the file that has them")
    return None if path is None else read_labels(path, columns)


def labelled_parts(store: Store, config: ImagesConfig | PretrainConfig) -> LabelledSplits:
    """As `split_labelled`, by the options."""
    return split_labelled(store, config.seed, config.test_share)


def parts_if_labelled(store: Store, config: ImagesConfig | PretrainConfig) -> LabelledSplits | None:
    """`labelled_parts`, or None where they can't be had."""
    with suppress(NotSplit):
        return labelled_parts(store, config)
    return None


def tell_test(parts: LabelledSplits, store: Store, config: ImagesConfig | PretrainConfig, seen: bool) -> None:
    """Print which images test; ``seen``: whether held-out images were (or are going to be) in pretraining."""
    test, train = parts.test, parts.train_val
    if not parts.held_out:
        labelled = f"{len(train):,} of {train.images.split} have labels"
        unused = "; --split-by is for data without a test split" * (config.split_by is not None)
        say(f"tested on {count(len(test), 'image', 'images')} of {test.images.split}; {labelled}{unused}")
        return
    alone = "no test split" if list(store.splits) == ["train"] else f"labels in {test.images.split} only"
    by = f", in whole groups by {_by(parts, config)}" if _by(parts, config) else ""
    share, total = "a fifth" if config.test_share == SHARE else f"{config.test_share:.3g}", len(test) + len(train)
    if abs(len(test) - config.test_share * total) > config.test_share * total / 10:  # of few images in a class
        share, by = f"about {share}", by or ", one image at least"
    say(
        f"{alone}: {len(test):,} of {total:,} images are held out for testing "
        f"({share} of each class{by}, seed {config.seed}){'; they are in pretraining, too, without labels' * seen}"
    )


def subset_of(config: ImagesConfig) -> dict[str, float | None]:
    """The options on which depends which of the data is looked at, of which then some are held out."""
    return {"limit": config.limit, "imbalance": config.imbalance}


def other_subset(tuned: Mapping[str, Any], config: ImagesConfig) -> str:
    """The options by which an encoder that was ``tuned`` on a subset of the same data tests on none of that; empty if
    they are given or its held-out images are test images of their own."""
    if not isinstance(tuned.get("held_out"), dict):
        return ""
    given = subset_of(config)
    others = {f"--{name}": tuned.get(name) for name, value in given.items() if value != tuned.get(name)}
    return " ".join(f"no {name}" if value is None else f"{name} {value}" for name, value in others.items())


def other_held_out(tuned: Any, config: ImagesConfig) -> str:
    """The options by which an encoder that was ``tuned`` with a part of the images held out tests on that part; empty
    if they are given or nothing is known."""
    if not isinstance(tuned, dict):
        return ""
    given = {"seed": config.seed, "share": config.test_share, "by": config.split_by}
    flags = {"seed": "--seed", "share": "--test-share", "by": "--split-by"}
    wanted = {name: None if tuned.get(name) == "image" else tuned.get(name) for name in flags}
    others = {flags[name]: value for name, value in wanted.items() if value != given[name]}
    return " ".join(f"no {name}" if value is None else f"{name} {quote(str(value))}" for name, value in others.items())


def tell_any_test(store: Store, config: PretrainConfig) -> LabelledSplits | None:
    """As `tell_test`, of the images of pretraining; None, and why, where nothing can be measured by labels."""
    try:
        parts = labelled_parts(store, config)
    except NotSplit as why:
        if store.label_names:
            say(f"kNN is not measured: {why}")
        return None
    tell_test(parts, store, config, seen=True)
    return parts


def about_test(parts: LabelledSplits, config: ImagesConfig | PretrainConfig) -> dict[str, Any]:
    """What a result says of test images: how many ``images`` of which ``split``; if ``held_out`` (else None), the
    ``share`` of each class, ``seed``, and what they are kept together ``by``; ``near_duplicates``, also printed (None
    of tiny images): how many of so many ``test`` were ``found`` in so many ``train``, and names of the ``first``."""
    held_out = {"share": config.test_share, "seed": config.seed, "by": _by(parts, config)} if parts.held_out else None
    near = near_duplicates(parts.train_val, parts.test, config.seed)
    if near and near.first:
        looked = "" if near.test == len(parts.test) else " that were looked at"
        are = "is a near-duplicate" if near.found == 1 else "are near-duplicates"
        first = " = ".join(near.first)
        say(f"{near.found:,} of {near.test:,} test images{looked} {are} of training images; the first: {first}")
    return {
        "images": len(parts.test),
        "split": parts.test.images.split,
        "held_out": held_out,
        "near_duplicates": near and near._asdict() | {"first": near.first and list(near.first)},
    }


def _by(parts: LabelledSplits, config: ImagesConfig | PretrainConfig) -> str | None:
    """What images are kept together by, if they are; tiles always are by their image."""
    return config.split_by or (None if parts.test.groups is None else "image")
