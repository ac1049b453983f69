"""Which images train and test what is measured: the same in every verb, and told in the same words."""

from typing import Any

from mocokit.config import ImagesConfig, PretrainConfig
from mocokit.console import say
from mocokit.data.labels_file import LabelsFile, read_labels
from mocokit.data.store import Store
from mocokit.errors import UserError
from mocokit.evaluation.splits import SHARE, LabelledSplits, split_labelled


def labels_of(path: str | None, columns: str | None) -> LabelsFile | None:
    """The file that ``--labels`` names, if it does."""
    if path is None and columns is not None:
        raise UserError(f"--labels-columns {columns}: needs --labels, the file that has them")
    return None if path is None else read_labels(path, columns)


def labelled_parts(store: Store, config: ImagesConfig | PretrainConfig) -> LabelledSplits | str:
    """As `split_labelled`, by the options."""
    return split_labelled(store, config.seed, config.test_share)


def about_test(
    parts: LabelledSplits, store: Store, config: ImagesConfig | PretrainConfig, seen: bool
) -> dict[str, Any]:
    """What a result says of its test images, also printed: how many ``images`` of which ``split``, and, if they are
    ``held_out`` (else None), the ``share`` of each class and the ``seed``.

    ``seen``: whether held-out images were (or are going to be) in pretraining.
    """
    test, train = parts.test, parts.train_val
    about: dict[str, Any] = {"images": len(test), "split": test.images.split, "held_out": None}
    if not parts.held_out:
        labelled = f"{len(train):,} of {train.images.split} have labels"
        say(f"tested on {len(test):,} images of {test.images.split}; {labelled}")
        return about
    alone = "no test split" if list(store.splits) == ["train"] else f"labels in {test.images.split} only"
    share = "a fifth" if config.test_share == SHARE else f"{config.test_share:.3g}"
    say(
        f"{alone}: {len(test):,} of {len(test) + len(train):,} images are held out for testing ({share} of each class, "
        f"seed {config.seed}){'; they are in pretraining, too, without labels' * seen}"
    )
    return about | {"held_out": {"share": config.test_share, "seed": config.seed}}


def about_any_test(store: Store, config: PretrainConfig) -> dict[str, Any] | None:
    """As `about_test`, of the images of pretraining; None, and why, where nothing can be measured by labels."""
    parts = labelled_parts(store, config)
    if not isinstance(parts, str):
        return about_test(parts, store, config, seen=True)
    if store.label_names:
        say(f"kNN is not measured: {parts}")
    return None
