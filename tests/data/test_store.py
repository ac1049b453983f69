"""The store holds what decode gives, and finds it again."""

import json
import os
import pickle
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mocokit.auto.defaults import choose_image_size
from mocokit.data.decode import decode
from mocokit.data.folder import FolderSource
from mocokit.data.store import ImageSet, Skipped, open_store, write_skipped
from tests.data.stores import all_pixels, contents, open_images, ragged
from tests.helpers import archive, class_folders, encode, noise, write_images


def test_a_labelled_set(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", classes=3, train=5, test=2)
    store = open_images(root)
    assert (store.name, store.image_size, store.channels, store.from_cache) == ("pets", 16, 3, False)
    assert store.label_names == ("class0", "class1", "class2")
    assert list(store.splits) == ["train", "test"]
    for split, count in (("train", 15), ("test", 6)):
        images = store.splits[split]
        assert len(images) == count == len(images.names)
        assert images.labels is not None
        assert images.labels.dtype == np.int64
        assert images.canvas == (8, 8)
        assert images.nbytes == count * 3 * 64
        assert images.sizes.dtype == np.int32
        expected = np.stack([decode((root / name).read_bytes()) for name in images.names])
        np.testing.assert_array_equal(all_pixels(store, split), expected)
        assert [f"class{label}" for label in images.labels] == [name.split("/")[1] for name in images.names]


def test_digits_are_kept_as_they_are() -> None:
    store = open_store("digits", image_size=partial(choose_image_size, cap=224))
    assert (store.image_size, store.channels, store.skipped) == (16, 1, [])
    assert {split: len(images) for split, images in store.splits.items()} == {"train": 1438, "test": 359}
    batch = store.splits["test"].batch([3, 0, 3])
    assert batch.shape == (3, 1, 8, 8)
    np.testing.assert_array_equal(batch[0], batch[2])
    batch[:] = 0  # a copy: the cache is not written to
    assert store.splits["test"].batch([3]).any()


def test_images_of_many_sizes_are_padded(tmp_path: Path) -> None:
    root = ragged(tmp_path / "data")
    store = open_images(root, image_size=64)
    images = store.splits["train"]
    assert images.canvas == (16, 20)
    assert images.sizes.tolist() == [[5 + number, 20 - number] for number in range(12)]
    order = [7, 0, 11, -1]
    for padded, index in zip(images.batch(order), order, strict=True):
        height, width = images.sizes[index]
        np.testing.assert_array_equal(padded[:, :height, :width], decode((root / images.names[index]).read_bytes()))
        assert not padded[:, height:].any()
        assert not padded[:, :, width:].any()
    with pytest.raises(IndexError):
        images.batch([12])


def test_an_image_set_pickles_as_a_path(tmp_path: Path) -> None:
    images = open_images(ragged(tmp_path / "data")).splits["train"]
    images.batch([0])
    pickled = pickle.dumps(images)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy.batch([1, 5]), images.batch([1, 5]))
    assert copy.names == images.names


def test_the_second_split_of_a_ragged_set_starts_where_the_first_ends(tmp_path: Path) -> None:
    ragged(tmp_path / "data" / "train")
    ragged(tmp_path / "data" / "test", prefix="other")
    store = open_images(tmp_path / "data", image_size=32)
    assert not np.array_equal(all_pixels(store), all_pixels(store, "test"))
    name = store.splits["test"].names[0]
    height, width = store.splits["test"].sizes[0]
    np.testing.assert_array_equal(
        store.splits["test"].batch([0])[0, :, :height, :width], decode((tmp_path / "data" / name).read_bytes())
    )


@pytest.mark.parametrize(
    ("sides", "cap", "expected"),
    [([(32, 32)], 224, 32), ([(30, 90)], 224, 32), ([(29, 40), (29, 40), (500, 600)], 224, 32),
     ([(2, 2)], 224, 16), ([(300, 400)], 224, 224), ([(27, 27)], 224, 24), ([(28, 28)], 224, 32)],
)  # fmt: skip
def test_the_image_size_follows_the_images(
    tmp_path: Path, sides: list[tuple[int, int]], cap: int, expected: int
) -> None:
    for number, (height, width) in enumerate(sides):
        write_images(tmp_path / "data", [f"{number}.png"], height=height, width=width)
    assert open_images(tmp_path / "data", image_size=partial(choose_image_size, cap=cap)).image_size == expected


@pytest.mark.parametrize(("side", "expected"), [(8, 16), (16, 16), (24, 16), (32, 16), (64, 32), (300, 40)])
def test_a_share_of_the_images_size(tmp_path: Path, side: int, expected: int) -> None:
    root = write_images(tmp_path / "data", ["a.png"], height=side, width=side)
    assert open_images(root, image_size=partial(choose_image_size, cap=40, share=0.5)).image_size == expected


def test_large_images_are_kept_twice_as_large_as_the_model_needs(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png", "2.png"], height=50, width=100)
    store = open_images(root, image_size=16)
    assert store.image_size == 16
    assert store.splits["train"].canvas == (16, 32)


def test_the_list_of_skipped_images_is_csv(tmp_path: Path) -> None:
    names = ["plain.png", 'comma, "quote".png', "new\nline.png", os.fsdecode(b"caf\xe9.png")]
    write_skipped(tmp_path / "out" / "skipped.csv", [Skipped(name, "a, b") for name in names])
    import csv

    with (tmp_path / "out" / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "reason"]
    assert rows[1:] == [[name, "a, b"] for name in [*names[:3], "caf\\udce9.png"]]


def test_names_that_are_not_utf8_survive_the_cache(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png"])
    with open(os.path.join(os.fsencode(root), b"caf\xe9.png"), "wb") as file:
        file.write(encode(noise(1)))
    assert open_images(root).splits["train"].names == ["1.png", "caf\udce9.png"]
    assert open_images(root).splits["train"].names == ["1.png", "caf\udce9.png"]


def test_the_second_time_nothing_is_listed_or_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(class_folders(tmp_path / "data"), tmp_path / "data.tar.xz")
    first = open_images(path)
    before = contents(first.path)

    def never(*_: object) -> None:
        raise AssertionError("not from the cache")

    monkeypatch.setattr("mocokit.data.archives.ArchiveSource.read_index", never)
    second = open_images(path)
    assert second.from_cache
    assert not first.from_cache
    assert contents(second.path) == before
    assert (second.fingerprint, second.label_names, second.image_size) == (
        first.fingerprint,
        first.label_names,
        first.image_size,
    )
    np.testing.assert_array_equal(all_pixels(second), all_pixels(first))


def test_every_option_and_every_file_has_its_own_entry(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data")
    paths = {open_images(root).path}
    for options in (
        {"image_size": 6},
        {"limit": 4},
        {"limit": 4, "seed": 1},
        {"channels": 1},
        {"image_size": lambda median: 4},
    ):
        paths.add(open_images(root, **options).path)
    write_images(root, ["train/class0/new.png"])
    paths.add(open_images(root).path)
    assert len(paths) == 7


def test_what_was_found_out_may_be_asked_for(tmp_path: Path) -> None:
    """After pretraining on `auto` the other verbs ask for the encoder's size, channels and range."""
    root = class_folders(tmp_path / "data")
    chosen = open_images(root, seed=3)
    found_out = {"image_size": chosen.image_size, "channels": chosen.channels}
    again = open_images(root, **found_out)
    assert (again.path, again.from_cache) == (chosen.path, True)
    assert not open_images(root, **found_out | {"image_size": chosen.image_size + 8}).from_cache
    assert not open_images(root, **found_out, intensity_range=(0.0, 7.0)).from_cache
    assert not open_images(root, **found_out, limit=4, seed=3).from_cache


def test_a_size_is_chosen_anew_from_the_median_that_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any rule that gives the size of an entry finds it; no image is looked at again."""
    root = write_images(tmp_path / "data", ["1.png", "2.png", "3.png"], height=20, width=40)
    seen: list[float] = []
    first = open_images(root, image_size=lambda median: seen.append(median) or 24)
    for name in ("read_index", "read", "file"):
        monkeypatch.setattr(FolderSource, name, None)
    again = open_images(root, image_size=lambda median: seen.append(median) or int(median) + 4)
    assert (again.path, again.from_cache) == (first.path, True)
    assert set(seen) == {20.0}
    assert open_images(root, image_size=24).path == first.path


@pytest.mark.parametrize("file", ["pixels.bin", "index.npz", "facts.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, file: str, damage: str) -> None:
    root = class_folders(tmp_path / "data")
    store = open_images(root)
    before = contents(store.path)
    path = store.path / file
    path.chmod(0o644)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if damage == "short" else b"")
    again = open_images(root)
    assert not again.from_cache
    assert contents(again.path) == before
    assert open_images(root).from_cache


def test_a_store_in_use_survives_the_removal_of_its_entry(tmp_path: Path) -> None:
    store = open_images(class_folders(tmp_path / "data"))
    shutil.rmtree(store.path)
    assert all_pixels(store).any()


def test_the_same_images_have_one_fingerprint_wherever_they_are(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", classes=3)
    fingerprint = open_images(root).fingerprint
    wrapped = tmp_path / "wrapper" / "inner"
    shutil.copytree(root, wrapped / "data")
    for other in (archive(root, tmp_path / "data.zip"), archive(root, tmp_path / "x.tar.xz"), wrapped.parent):
        assert open_images(other).fingerprint == fingerprint
    (root / "train" / "class0" / "000.png").rename(root / "train" / "class2" / "zzz.png")
    assert open_images(root).fingerprint != fingerprint


def test_the_fingerprint_follows_a_single_pixel(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data")
    before = open_images(root).fingerprint
    path = root / "train" / "class0" / "000.png"
    pixels = decode(path.read_bytes()).transpose(1, 2, 0).copy()
    pixels[3, 3, 1] ^= 1
    path.write_bytes(encode(pixels))
    assert open_images(root).fingerprint != before


@pytest.mark.slow
@pytest.mark.skipif("MOCOKIT_CIFAR10" not in os.environ, reason="set MOCOKIT_CIFAR10 to an archive of CIFAR-10")
def test_cifar10_from_an_archive() -> None:
    start = time.perf_counter()
    store = open_store(os.environ["MOCOKIT_CIFAR10"], image_size=partial(choose_image_size, cap=224))
    cold = time.perf_counter() - start
    start = time.perf_counter()
    cached = open_store(os.environ["MOCOKIT_CIFAR10"], image_size=partial(choose_image_size, cap=224))
    warm = time.perf_counter() - start
    print(json.dumps({"cold_s": round(cold, 2), "cached_s": round(warm, 3)}))
    assert cached.from_cache
    assert warm < 1
    assert {split: len(images) for split, images in store.splits.items()} == {"train": 50_000, "test": 10_000}
    assert (store.image_size, store.channels, store.skipped) == (32, 3, [])
    assert store.label_names is not None
    assert len(store.label_names) == 10
    assert store.splits["train"].labels is not None
    assert np.bincount(store.splits["train"].labels).tolist() == [5000] * 10
    means = store.splits["train"].batch(np.arange(0, 50_000, 10)).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(means, [125.3, 123.0, 113.9], atol=2)  # the data set's well-known mean


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0] * 3 + [1] * 5 + [2] * 4, "3 classes of 3 (ant) to 5 (bee) images"),
        ([0] * 2 + [1] * 2 + [-1] * 3, "3 classes (2 in train) of 2 images"),  # the cow is in test
        ([-1] * 4, "3 classes"),
        (None, "3 classes"),
        ([2] * 1, "3 classes (1 in train) of 1 image"),
    ],
)
def test_the_smallest_and_the_largest_class_are_named(tmp_path: Path, labels: list[int] | None, expected: str) -> None:
    count = 7 if labels is None else len(labels)
    store = open_images(write_images(tmp_path / "pets", [f"{number}.png" for number in range(count)]))
    values = None if labels is None else np.array(labels)
    images = ImageSet(store.path, "train", labels=values)
    named = replace(store, splits={"train": images}, label_names=("ant", "bee", "cow"))
    assert named.summary() == f"pets: {count} train image{'s' * (count > 1)}, colour, {expected}"


@pytest.mark.parametrize("options", [{}, {"image_size": 8}])
def test_the_median_side_is_known_where_it_is_trained_on(tmp_path: Path, options: dict[str, int]) -> None:
    """In the images' own pixels, from the cache, too."""
    for number, side in enumerate((30, 50, 70)):
        write_images(tmp_path / "data", [f"{number}.png"], height=side, width=100)
    for _ in range(2):
        assert open_images(tmp_path / "data", to_train=True, **options).median_side == 50
