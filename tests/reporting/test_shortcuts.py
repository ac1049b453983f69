"""What features hold is told, what they do not hold is at chance, and folders that are classes are not asked for."""

from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from mocokit.evaluation.metrics import wilson_interval
from mocokit.reporting import shortcuts as module
from mocokit.reporting.file_facts import FileFacts, read_facts
from mocokit.reporting.images import ReportImages
from mocokit.reporting.shortcuts import (
    LEAST,
    LEVEL,
    MOST_VALUES,
    Shortcut,
    _by_class,
    _common,
    _ranges,
    _tell,
    _Values,
    shortcuts,
)
from tests.helpers import encode, noise


@pytest.fixture(autouse=True)
def one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of many images, which is faster."""
    monkeypatch.setattr(module, "FEW", 0)


NO_FACTS = FileFacts()
VALUES = {"folder": 4, "mean brightness": 3, "file format": 2, "JPEG quality": 3, "camera": 3, "date taken": 3}


class Pictures:
    """Stands for `ReportImages`: gray images of one level each."""

    label_names = ("ant", "bee", "cow")

    def __init__(self, names, labels=None, splits=None, levels=None, sizes=None) -> None:
        self.names, count = names, len(names)
        self.labels = None if labels is None else np.asarray(labels)
        self.splits = np.full(count, "train") if splits is None else np.asarray(splits)
        self.levels = np.zeros(count) if levels is None else levels
        self.sizes = np.full((count, 2), 8) if sizes is None else np.asarray(sizes)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: int) -> np.ndarray:
        return np.full((1, 8, 8), self.levels[row], np.uint8)


class Data:
    """Images of which everything in `VALUES`, and the class, is independent."""

    def __init__(self, seed: int, count: int = 300) -> None:
        self.draw, self.count = np.random.default_rng(seed), count
        held = self.held = {name: self.draw.integers(0, values, count) for name, values in VALUES.items()}
        held["mean brightness"] = self.draw.permutation(np.arange(count) % 3)
        held["class"] = self.draw.integers(0, 3, count)
        names = [f"site {folder}/{row}" for row, folder in enumerate(held["folder"])]
        self.images = Pictures(names, held["class"], levels=80 * held["mean brightness"] + self.draw.integers(80))
        first = datetime(2015, 1, 1)
        self.facts = {
            row: FileFacts(
                ("JPEG", "PNG")[held["file format"][row]],
                quality=70 + 10 * int(held["JPEG quality"][row]),
                camera=f"M {held['camera'][row]}",
                taken=first + timedelta(days=365 * int(held["date taken"][row])),
            )
            for row in range(count)
        }

    def features(self, name: str | None = None) -> Tensor:
        """[N, 4] that hold this, or noise."""
        x = self.draw.normal(0, 1, (self.count, 4))
        return torch.tensor(x if name is None else x + 20 * np.eye(4)[self.held[name]], dtype=torch.float32)


# What is told -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "mean brightness", "class"])
def test_what_features_hold_is_told_and_nothing_else(name):
    data = Data(0)
    found = shortcuts(data.images, data.features(name), data.features(), data.facts, 0)
    told = {one.name: one for one in [*found.told, found.label]}
    assert set(told) == {*VALUES, "class"}
    for its, one in told.items():
        assert one.left_out == 0
        assert len(one.values) == {**VALUES, "class": 3}[its]
        assert abs(one.images - 150) <= 2
        assert one.interval == wilson_interval(one.right, one.images)
        assert one.untrained_interval == wilson_interval(one.untrained, one.images)
        assert one.change == ("easier" if its == name else None)
        assert abs(one.untrained - one.chance) < 0.15
        assert one.right > 0.98 if its == name else abs(one.right - one.chance) < 0.15
    assert found.label.by_class is None


def test_what_features_do_not_hold_is_at_chance_and_not_changed():
    """The interval holds chance as often as it should, and luck is hardly ever called a change."""
    draw, told = np.random.default_rng(0), []
    for seed in range(60):
        values = _Values(draw.integers(0, 3, 160), "abc")
        features = torch.tensor(draw.normal(0, 1, (2, 160, 60)), dtype=torch.float32)
        told.append(_tell("camera", values, list(features), None, seed, LEVEL))
    assert np.mean([one.interval[0] <= one.chance <= one.interval[1] for one in told]) > 0.85
    assert Counter(one.change for one in told)[None] >= 60 - 12


def test_training_may_make_it_harder_to_tell():
    data = Data(1)
    held, not_held = data.features("camera"), data.features()
    for features, untrained, change in ((held, not_held, "easier"), (not_held, held, "harder"), (held, held, None)):
        camera = _tell("camera", _Values(data.held["camera"], "abc"), [features, untrained], None, 0, LEVEL)
        assert camera.change == change
        assert (camera.right == camera.untrained) == (change is None)


def test_the_seed_decides():
    images, features = Pictures(["0/x", "1/x"] * 100), torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    first, again, other = (
        shortcuts(images, features, features, dict.fromkeys(range(200), NO_FACTS), seed) for seed in (0, 0, 1)
    )
    assert len(first.told) == 1
    assert first == again
    assert first != other


def test_rows_without_facts_are_not_looked_at():
    """Those that hold something else do not disturb."""
    data = Data(3)
    half = {row: its for row, its in data.facts.items() if row % 2}
    features = data.features("folder")
    features[::2] = torch.nan
    found = shortcuts(data.images, features, features, half, 0)
    assert {one.name for one in found.told} == set(VALUES)
    assert found.told[0].right > 0.98
    assert all(abs(one.images - 75) <= 2 for one in found.told)


def test_sizes_are_those_of_files_and_else_of_images():
    sizes = np.array([(10, 20), (30, 10), (30, 30)] * 20)
    images = Pictures([f"{row}" for row in range(60)], sizes=sizes)
    for facts, sides in ((NO_FACTS, ("20", "30")), (FileFacts("PNG", (7, 5)), None)):
        found = shortcuts(images, torch.randn(60, 3), torch.randn(60, 3), dict.fromkeys(range(60), facts), 0).told
        told = {one.name: one.values for one in found}
        assert told["aspect ratio"] == ("0.33", "1.0", "2.0")
        assert told.get("image size") == (sides and tuple(f"{side} pixels" for side in sides))
        assert len(told) == 1 + (sides is not None)


def test_values_of_few_images_and_missing_ones_are_left_out():
    cameras = ["a"] * 30 + ["b"] * 30 + ["c"] * (LEAST - 1) + [None] * 11
    facts = {row: FileFacts(camera=camera) for row, camera in enumerate(cameras)}
    features = torch.randn(80, 3)
    (camera,) = shortcuts(Pictures([f"{row}" for row in range(80)]), features, features, facts, 0).told
    assert camera.values == ("a", "b")
    assert (camera.left_out, camera.images, camera.by_class) == (LEAST - 1 + 11, 30, None)


def test_nothing_to_tell():
    for count, labels in ((1, None), (3, None), (3, [0, 1, 2]), (40, [0] * 40), (40, None)):
        images = Pictures([f"{row}" for row in range(count)], labels)
        features = torch.randn(count, 4)
        found = shortcuts(images, features, features, dict.fromkeys(range(count), NO_FACTS), 0)
        assert found == ([], None, [])


def test_the_sentence():
    values = {"name": "folder", "values": ("a", "b"), "left_out": 0, "images": 99, "interval": (0.949, 0.981)}
    figures = {"right": 0.968, "untrained": 0.6, "untrained_interval": (0.5, 0.7), "chance": 0.254}
    told = "the features tell the folder (one of 2) in 97 % of cases (95 to 98 %), random initialisation in 60 %, "
    assert str(Shortcut(**values, **figures, by_class=None, change=None)) == told + "chance is 25 %"
    assert str(Shortcut(**values, **figures, by_class=0.5, change="easier")) == (
        told + "the class alone tells it in 50 %, chance is 25 %: training made it easier to tell"
    )


# Folders ----------------------------------------------------------------------------------------------------

SITES = [0, 1] * 40
CLASSES = [0, 0, 1, 1] * 20
SPLITS = ["train"] * 40 + ["test"] * 40
ROWS = list(zip(SITES, CLASSES, SPLITS, strict=True))


def folders_of(names, labels=None, splits=None) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    features = torch.randn(len(names), 2)
    images = Pictures([f"{folder}/{row}" if folder else f"{row}" for row, folder in enumerate(names)], labels, splits)
    found = shortcuts(images, features, features, dict.fromkeys(range(len(names)), NO_FACTS), 0)
    return {one.name: one.values for one in found.told}, found.notes


@pytest.mark.parametrize("form", ["{c}", "{s}/{c}", "pictures/{c}", "{c}/{s}", "group {g}/{c}"])
def test_folders_that_follow_from_class_and_split_are_not_asked_for(form):
    names = [form.format(c="abc"[c], s=s, g=int(c < 1)) for _, c, s in ROWS]
    found, (note,) = folders_of(names, CLASSES, SPLITS)
    assert found == {}
    assert "they follow from class and split" in note


@pytest.mark.parametrize("form", ["{c}/site {h}", "site {h}/{c}", "{s}/site {h}", "{s}/{c}/x/site {h}", "site {h}"])
def test_of_other_folders_those_levels_are_asked_for_that_do_not_follow(form):
    names = [form.format(c="abc"[c], h=h, s=s) for h, c, s in ROWS]
    assert folders_of(names, CLASSES, SPLITS) == ({"folder": ("site 0", "site 1")}, [])


def test_folders_in_folders():
    """Without labels all levels count; images beside the folders are in one, too."""
    names = [f"site {h}/{c}" for h, c, _ in ROWS] + [""] * LEAST
    found, notes = folders_of(names)
    assert found["top folder"] == (".", "site 0", "site 1")
    assert found["folder"] == (".", "site 0/0", "site 0/1", "site 1/0", "site 1/1")
    assert not notes


def test_shards_and_no_folders():
    assert folders_of([f"train-{h}.parquet" for h in SITES])[0] == {"shard": ("train-0.parquet", "train-1.parquet")}
    for names in ([""] * 80, ["a/b"] * 80):
        assert folders_of(names) == ({}, [])
    assert folders_of(SPLITS, None, SPLITS)[0] == {}


def test_the_class_alone_tells_what_is_tied_to_it():
    data = Data(4)
    data.images.names = [f"site {min(label, 1)}/{row}" for row, label in enumerate(data.held["class"])]
    data.images.names[0] = "site 1/0" if data.held["class"][0] == 0 else "site 0/0"  # an exception
    found = {
        one.name: one for one in shortcuts(data.images, data.features("class"), data.features(), data.facts, 0).told
    }
    assert found["folder"].by_class > 0.98
    assert found["folder"].right > 0.98
    assert abs(found["camera"].by_class - found["camera"].chance) < 0.15


def test_images_without_a_class_are_a_class_of_their_own():
    labels = [0, 1, 2, -1] * 30
    facts = {row: FileFacts(camera="known" if label == 2 else "other") for row, label in enumerate(labels)}
    features = torch.randn(120, 2)
    (camera,) = shortcuts(Pictures([f"{row}" for row in range(120)], labels), features, features, facts, 0).told
    assert camera.by_class == 1


# Parts ------------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.integers(0, 12), min_size=1, max_size=60))
def test_ranges_keep_equal_numbers_together_and_are_as_equal_as_they_can_be(values):
    codes, names = _ranges(values)
    known = sorted((value, code) for value, code in zip(values, codes.tolist(), strict=True) if value is not None)
    assert all((code == -1) == (value is None) for value, code in zip(values, codes, strict=True))
    assert [code for _, code in known] == sorted(code for _, code in known)
    ranges = {code: {value for value, its in known if its == code} for _, code in known}
    assert sorted(ranges) == list(range(len(names)))
    assert names == [" to ".join(map(str, sorted({min(r), max(r)}))) for _, r in sorted(ranges.items())]
    assert sum(map(len, ranges.values())) == len(set(values) - {None})  # no number is in two
    cuts = {value for value in values if value is not None and value != known[-1][0]}
    below = {value: sum(other <= value for other, _ in known) / len(known) for value in cuts}
    for share in (1 / 3, 2 / 3) if cuts else ():
        nearest = min(abs(at - share) for at in below.values())
        assert any(abs(below[max(r)] - share) == pytest.approx(nearest) for r in ranges.values() if max(r) in cuts)


@given(st.lists(st.integers(-100, 100), min_size=3, max_size=60, unique=True))
def test_ranges_of_different_numbers_are_terciles(values):
    sizes = np.bincount(_ranges(values)[0])
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(-1, 40), max_size=500), st.integers(1, 5))
def test_common_values_are_those_of_enough_images(codes, repeats):
    codes, names = np.array(codes * repeats, np.int64), [f"{value:02d}" for value in range(41)]
    counts = Counter(codes[codes >= 0].tolist())
    kept = [value for value in counts if counts[value] >= LEAST]
    kept = sorted(sorted(kept, key=lambda value: (-counts[value], value))[:MOST_VALUES])
    found = _common(_Values(codes, names))
    assert found.names == [names[value] for value in kept]
    assert found.codes.tolist() == [kept.index(code) if code in kept else -1 for code in codes.tolist()]


def test_by_class_counts():
    draw = torch.Generator().manual_seed(0)
    classes, y = (torch.randint(0, 4, (300,), generator=draw) for _ in range(2))
    test = torch.rand(300, generator=draw) < 0.4
    right = 0
    for row in test.nonzero().flatten().tolist():
        same = Counter(y[~test & (classes == classes[row])].tolist())
        right += max(sorted(same), key=same.__getitem__) == int(y[row])
    assert _by_class(classes, y, test) == pytest.approx(right / int(test.sum()))


@pytest.mark.parametrize("channels", [1, 3])
def test_of_files(tmp_path, monkeypatch, channels):
    """From files to sentences: features that hold the format alone; few images, so that all folds choose."""
    monkeypatch.setattr(module, "FEW", 500)
    kinds = ["PNG" if number % 3 == 0 else "JPEG" for number in range(90)]
    for number, kind in enumerate(kinds):
        path = tmp_path / "ab"[number % 2] / f"{number:02d}.{kind.lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(noise(number, 12, 12, channels), kind))
    images = ReportImages.of(open_store(str(tmp_path), image_size=8), None, 0)
    facts = read_facts(open_source(str(tmp_path)), images, 0)
    features = torch.tensor([[float(name.endswith("png")), 1.0] for name in images.names])
    found = shortcuts(images, features, torch.randn(90, 2), facts, 0)
    assert [one.name for one in found.told] == ["mean brightness", "file format"]
    assert found.told[1].values == ("JPEG", "PNG")
    assert (found.told[1].right, found.told[1].change) == (1.0, "easier")
    assert found.told[1].chance == pytest.approx(2 / 3)
    assert found.label.values == ("a", "b")
    assert found.notes
