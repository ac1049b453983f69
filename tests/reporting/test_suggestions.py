"""Each kind finds the images that were made for it and no others; a CSV file holds what the page shows."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from mocokit.data.store import open_store
from mocokit.evaluation.splits import split_labelled
from mocokit.reporting.images import ReportImages
from mocokit.reporting.neighbours import Neighbours, neighbours
from mocokit.reporting.suggestions import MOST_OUTLIERS, Suggestion, suggestions, write_list
from tests.helpers import class_folders
from tests.reporting.pictures import picture, report_images

QUALITY = ["blank", "too-dark", "too-bright", "blurred", "odd-shapes"]


def like(count: int, seed: int = 0) -> Neighbours:
    """Of features that are all about equally far from each other."""
    return neighbours(torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)))


def by_key(images, near=None) -> dict[str, Suggestion]:
    return {kind.key: kind for kind in suggestions(images, near or like(len(images)))}


def grayish(seed: int) -> np.ndarray:
    """A picture of usual light, sharpness and shape."""
    return picture(seed, 32, 3)


def level(value: int, deviation: float, seed: int = 0) -> np.ndarray:
    """Noise around a gray level."""
    noise = np.random.default_rng(seed).normal(value, deviation, (1, 32, 32))
    return np.clip(noise, 0, 255).astype(np.uint8).repeat(3, 0)


def test_the_order_is_fixed_and_none_is_in_the_list_too():
    images = [grayish(seed) for seed in range(30)]
    plain = suggestions(report_images(images), like(30))
    assert [kind.key for kind in plain] == ["exact-duplicates", "near-duplicates", "outliers", *QUALITY]
    assert all(len(kind.rows) == 0 for kind in plain if kind.key != "outliers")
    full = suggestions(
        report_images(images, splits=["train", "test"] * 15, labels=[0] * 30, label_names=("a",)), like(30)
    )
    first = ["exact-duplicates", "near-duplicates", "leaks", "label-errors", "outliers"]
    assert [kind.key for kind in full] == [*first, *QUALITY]
    assert len({kind.title for kind in full}) == len(full)
    assert all(kind.definition.endswith(".") for kind in full)


def test_pixels_tell_blank_dark_bright_blurred_and_odd_images():
    images = [grayish(seed) for seed in range(40)]
    blurred = [np.asarray(Image.fromarray(image[0]).filter(ImageFilter.GaussianBlur(2))) for image in images[:2]]
    images += [level(100, 1.5), level(0, 0), level(255, 0)]  # 40 to 42: blank
    images += [level(30, 8), level(20, 8), level(230, 8)]  # 43, 44 dark, 45 bright
    images += [image[None].repeat(3, 0) for image in blurred]  # 46, 47
    images += [grayish(50)[:, :14], np.concatenate([grayish(51)] * 3, axis=2)]  # 48: 2.3 times, 49: 3 times
    found = by_key(report_images(images))
    assert found["blank"].rows.tolist() == [41, 42, 40]  # the plainest first
    assert found["too-dark"].rows.tolist() == [44, 43]
    assert found["too-bright"].rows.tolist() == [45]
    assert sorted(found["blurred"].rows) == [46, 47]
    assert found["odd-shapes"].rows.tolist() == [49, 48]
    assert found["odd-shapes"].columns == {"times longer": [3.0, round(32 / 14, 6)]}


def test_sharpness_and_shape_follow_the_data():
    """Where all are blurred or long none is."""
    images = [np.asarray(Image.fromarray(grayish(s)[0]).filter(ImageFilter.GaussianBlur(2))) for s in range(30)]
    found = by_key(report_images([image[None, :8] for image in images]))
    assert found["blurred"].rows.tolist() == found["odd-shapes"].rows.tolist() == []


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(channels):
    images = [picture(seed, 32, channels) for seed in range(20)]
    images += [np.zeros((channels, 32, 32), np.uint8), images[3].copy(), np.roll(images[4], 1, axis=0) // 2 + 60]
    found = by_key(report_images(images))
    assert found["blank"].rows.tolist() == [20]
    assert found["exact-duplicates"].rows.tolist() == [3, 21]
    assert found["near-duplicates"].rows.tolist() == [4, 22]


def test_groups_are_numbered_the_most_striking_first():
    images = [grayish(seed) for seed in range(30)]
    nearer, near = ((images[row] * share).astype(np.uint8) for row, share in ((8, 0.95), (6, 0.2)))
    found = by_key(report_images([*images, images[1], images[2], images[2], near, nearer]))
    assert found["exact-duplicates"].rows.tolist() == [2, 31, 32, 1, 30]
    assert found["exact-duplicates"].groups.tolist() == [1, 1, 1, 2, 2]
    assert found["exact-duplicates"].columns == {"copies": [3, 3, 3, 2, 2]}
    assert found["near-duplicates"].rows.tolist() == [8, 34, 6, 33]
    assert found["near-duplicates"].groups.tolist() == [1, 1, 2, 2]
    one, _, other, _ = found["near-duplicates"].columns["correlation"]
    assert 1 > one > other > 0.9


def test_leaks_are_duplicates_in_different_splits():
    images = [grayish(seed) for seed in range(30)]
    images += [(images[4] * 0.9).astype(np.uint8), (images[5] * 0.9).astype(np.uint8), images[6]]
    images += [images[4], (images[7] * 0.9).astype(np.uint8)]
    splits = ["train"] * 32 + ["val", "test", "test"]
    found = by_key(report_images(images, splits=splits))
    assert found["leaks"].rows.tolist() == [4, 30, 33, 6, 32, 7, 34]
    assert found["leaks"].groups.tolist() == [1, 1, 1, 2, 2, 3, 3]
    correlation = found["leaks"].columns["correlation"]
    assert [value == 1 for value in correlation] == [True, False, True, True, True, False, False]
    assert "(test, train, val)" in found["leaks"].definition


def test_outliers_are_far_from_their_tenth_neighbour():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=32)
    features = centre + 0.2 * rng.normal(size=(200, 32))
    features[[17, 140]] = rng.normal(size=(2, 32))
    images, near = report_images([grayish(seed) for seed in range(200)]), neighbours(torch.tensor(features).float())
    found = by_key(images, near)["outliers"]
    assert sorted(found.rows[:2]) == [17, 140]
    assert len(found.rows) < 12
    np.testing.assert_allclose(found.columns["distance"], 1 - near.similarity[found.rows, 9], atol=1e-6)
    assert (np.diff(found.columns["distance"]) <= 0).all()


def test_outliers_are_not_too_many_and_none_where_all_are_equal():
    distances = torch.cat([torch.linspace(0.1, 0.2, 300), torch.linspace(0.8, 0.9, 100)])
    near = Neighbours(torch.zeros(400, 10, dtype=torch.int64), (1 - distances)[:, None].expand(400, 10))
    images = report_images([grayish(0)] * 400)
    assert by_key(images, near)["outliers"].rows.tolist() == [399 - row for row in range(MOST_OUTLIERS)]
    equal = torch.rand(400, 10) * 1e-7 + 0.4
    assert len(by_key(images, Neighbours(near.rows, equal))["outliers"].rows) == 0


def test_label_errors_name_the_class():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    features = np.eye(2)[labels] + 0.1 * rng.normal(size=(120, 2))
    labels[[5, 70, 80]] = 1, 0, -1
    images = report_images([grayish(s) for s in range(120)], labels=labels.tolist(), label_names=("cat", "d\udcffg"))
    found = by_key(images, neighbours(torch.tensor(features).float()))["label-errors"]
    assert sorted(zip(found.rows.tolist(), found.columns["suggested class"], strict=True)) == [
        (5, "cat"),
        (70, "d\\udcffg"),
    ]
    assert list(found.columns) == ["share", "suggested class", "own share"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(count):
    images = report_images([grayish(seed) for seed in range(count)], labels=[0] * count, label_names=("a",))
    assert all(len(kind.rows) < count for kind in suggestions(images, like(count)))


def test_images_of_a_folder(tmp_path):
    """A copy of a training image among those that test."""
    class_folders(tmp_path / "data", height=32, width=32)
    copy = tmp_path / "data/test/class1/copy.png"
    copy.write_bytes((tmp_path / "data/train/class0/003.png").read_bytes())
    store = open_store(str(tmp_path / "data"), image_size=32)
    images = ReportImages.of(store, split_labelled(store, 0), 0)
    found = by_key(images)
    for key, number in (("exact-duplicates", "2"), ("leaks", "1.0")):
        lines = write_list(tmp_path, found[key], images).read_text(encoding="utf-8").splitlines()[1:]
        expected = [("train/class0/003.png", "train", "class0"), ("test/class1/copy.png", "test", "class1")]
        assert lines == [f'1,"{name}","{split}","{label}",{number}' for name, split, label in expected]


def test_csv_holds_names_of_any_kind(tmp_path):
    names = ['"a", b.png', "c\nd.png", "e\rf.png", "<script>", "é 猫.png"]
    twins = [grayish(0), (grayish(0) * 0.9).astype(np.uint8), *[grayish(seed) for seed in range(1, 40)]]
    images = report_images(
        twins[:2] + twins[2:5] + twins[5:],
        names=[*names, *[f"{row}" for row in range(36)]],
        splits=["train"] * 41,
        labels=[0, -1, *[1] * 39],
        label_names=("first, class", "x"),
    )
    kinds = by_key(images)
    path = write_list(tmp_path, kinds["near-duplicates"], images)
    assert path == tmp_path / "near-duplicates.csv"
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    correlation = str(kinds["near-duplicates"].columns["correlation"][0])
    assert table == [
        ["group", "image", "split", "class", "correlation"],
        ["1", names[0], "train", "first, class", correlation],
        ["1", names[1], "train", "", correlation],
    ]
    every = Suggestion("all", "All", "All.", np.arange(5), {"number": [0.5] * 5})
    with write_list(tmp_path, every, images).open(encoding="utf-8", newline="") as file:
        assert [line["image"] for line in csv.DictReader(file)] == names


def test_csv_of_none_has_a_header_and_no_class_without_labels(tmp_path):
    images = report_images([grayish(seed) for seed in range(20)])
    path = write_list(tmp_path, by_key(images)["blank"], images)
    assert path.read_text(encoding="utf-8") == '"image","split","deviation"\n'
    assert list(tmp_path.iterdir()) == [path]
