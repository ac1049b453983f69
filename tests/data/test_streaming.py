"""Streamed batches: each image once an epoch, the same for any number of processes, from any step on."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit import distributed
from mocokit.data import shard_readers, streaming
from mocokit.data.dataset import Batch
from mocokit.data.image_index import ImageIndex
from mocokit.data.loader import create_loader
from mocokit.data.pillow import BadImage
from mocokit.data.sources import open_source
from mocokit.data.store import TooManySkipped, open_store
from mocokit.data.streaming import StreamingDataset, StreamingImages, open_streaming
from mocokit.errors import UserError
from tests.data.shard_sets import write_tar
from tests.helpers import encode, noise, png16, write_images

CPU = torch.device("cpu")


class Numbered:
    """A source whose images show their own numbers; those in ``bad`` can't be used."""

    name, decoded = "numbered", True

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.bad, self.max_pixels = bad, 10**8
        self.asked: list[int] = []

    def fingerprint(self) -> str:
        return "numbered"

    def read_index(self) -> ImageIndex:
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        self.asked.append(index)
        if index in self.bad:
            raise BadImage("spoilt")
        return np.full((3, 2, 2), np.array([index >> 8, index & 255, 7])[:, None, None], dtype=np.uint8)


def numbered(
    count: int, run: int = 1, bad: tuple[int, ...] = (), max_skipped: float = 0.5, first: int = 0
) -> StreamingImages:
    """``count`` images of which ``run`` at a time are read together, after ``first`` others of the source."""
    indices = np.arange(first, first + count)
    blocks = None if run == 1 else indices // run
    names = [f"image {index}" for index in range(first + count)]
    return StreamingImages(Numbered(bad), names, indices, blocks, 8, 3, None, max_skipped)


def taken(images: StreamingImages, batch: int, steps: int, seed: int = 0, start: int = 0) -> list[Batch]:
    loader = create_loader(images, batch_size=batch, seed=seed, device=CPU, workers=0)
    return list(loader.batches(start, steps))


def ids_of(batches: list[Batch]) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


def shared(images: StreamingImages, batch: int, steps: int, seed: int, count: int) -> list[list[int]]:
    """The ids of each step's batch, put together from what each of ``count`` processes sees."""
    each = batch // count
    parts = []
    for rank in range(count):
        part = slice(rank * each, (rank + 1) * each)
        with patch.object(distributed, "local_slice", lambda total, part=part: part):
            parts.append(ids_of(taken(images, batch, steps, seed)))
    return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


sets = st.tuples(st.integers(8, 300), st.integers(1, 60), st.integers(2, 40), st.integers(1, 30))


@settings(max_examples=40)
@given(sets, st.integers(0, 5))
def test_an_epoch_is_every_image_once_but_for_the_remainder(shape: tuple[int, int, int, int], seed: int) -> None:
    count, run, batch, window = shape
    batch = min(batch, count)
    per_epoch = count // batch
    with patch.object(streaming, "MOST_WINDOW", window):
        batches = taken(numbered(count, run, first=300), batch, 2 * per_epoch, seed)
    assert [b.step for b in batches] == list(range(2 * per_epoch))
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        ids = [row for batch_ids in ids_of(epoch) for row in batch_ids]
        assert len(set(ids)) == len(ids) == per_epoch * batch
        assert set(ids) <= set(range(count))
    for b in batches:
        shown = b.images[:, 0, 0, 0].long() * 256 + b.images[:, 1, 1, 1].long()
        assert torch.equal(shown, b.ids + 300)  # the pixels are those of the ids
        assert b.sizes.tolist() == [[2, 2]] * batch


@settings(max_examples=25)
@given(sets, st.integers(0, 5), st.data())
def test_any_number_of_processes_and_any_first_step_give_the_same_batches(
    shape: tuple[int, int, int, int], seed: int, data: st.DataObject
) -> None:
    count, run, batch, window = shape
    processes_ = data.draw(st.integers(1, 6))
    batch = processes_ * max(1, min(batch, count) // processes_)
    bad = tuple(data.draw(st.lists(st.integers(0, count - 1), max_size=2)))
    steps = min(2 * (count // batch) + 1, 40)
    images = numbered(count, run, bad, max_skipped=1.0)
    with patch.object(streaming, "MOST_WINDOW", max(window, 3)):
        try:
            whole = taken(images, batch, steps, seed)
        except UserError:  # a window of nothing but bad images
            return
        assert shared(images, batch, steps, seed, processes_) == ids_of(whole)
        start = data.draw(st.integers(0, steps))
        assert ids_of(taken(images, batch, steps, seed, start)) == ids_of(whole)[start:]


def test_orders_differ_by_epoch_and_seed() -> None:
    images = numbered(200, run=10)
    first, second = ids_of(taken(images, 200, 2))
    (other,) = ids_of(taken(images, 200, 1, seed=1))
    assert sorted(first) == sorted(second) == sorted(other) == list(range(200))
    assert first != second
    assert first != other


def test_a_batch_mixes_runs_and_a_window_is_mixed() -> None:
    """Of sorted data, as exports often are, no batch is of one kind."""
    batches = taken(numbered(6400, run=100), 64, 100)
    blocks = np.array([len(set((batch.ids // 100).tolist())) for batch in batches])
    assert blocks.min() >= 8  # of 64 blocks
    first_lane = np.concatenate([batch.ids[:16].numpy() for batch in batches])
    assert abs((np.diff(first_lane) > 0).mean() - 0.5) < 0.05


def test_a_run_is_fetched_once_an_epoch(tmp_path: Path) -> None:
    """Up to those that two lanes or windows share, however the lanes take turns."""
    table = pa.table({"image": [encode(noise(i, 2, 2)) for i in range(400)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    source = open_source(str(tmp_path / "a.parquet"))
    image_index = source.read_index()
    images = StreamingImages(source, image_index.names, image_index.splits["train"], image_index.blocks, 8, 3, None, 0)
    with (
        patch.object(shard_readers, "open_file", wraps=shard_readers.open_file) as opened,
        patch.object(streaming, "MOST_WINDOW", 16),
    ):
        taken(images, 32, 400 // 32)
    assert 39 <= opened.call_count <= 40 + streaming.LEAST_LANES


def test_unusable_images_are_replaced_and_listed() -> None:
    images = numbered(64, run=8, bad=(3, 17, 40))
    dataset = StreamingDataset(images, 16, 0, workers=0)
    ids = torch.cat([batch.ids for batch in dataset.from_step(0, 4)])
    assert not set(ids.tolist()) & {3, 17, 40}
    assert len(ids) == 64
    assert [(s.name, s.reason) for s in dataset.skipped] == [(f"image {i}", "spoilt") for i in (3, 17, 40)]


def test_too_many_unusable_images_end_the_run() -> None:
    images = numbered(2000, run=100, bad=tuple(range(0, 2000, 10)), max_skipped=0.05)
    with pytest.raises(TooManySkipped, match="--max-skipped") as raised:
        taken(images, 64, 31)
    assert len(raised.value.skipped) < 200  # found out long before the epoch's end


def test_a_few_of_the_first_images_do_not_end_the_run() -> None:
    images = numbered(200, run=8, bad=tuple(range(0, 16, 2)), max_skipped=0.05)
    assert len(taken(images, 16, 12)) == 12


def test_what_was_unusable_before_a_stop_counts() -> None:
    """No more of them may be in two parts of a run than in one."""
    images = numbered(4000, run=100, bad=(40,), max_skipped=0.05)
    dataset = StreamingDataset(images, 64, 0, workers=0)
    dataset.go_on(60, dict.fromkeys(range(50, 250), "spoilt"))  # 5.2 % of 3,840
    with pytest.raises(TooManySkipped, match="201 of") as raised:
        list(dataset.from_step(60, 62))
    assert raised.value.skipped[:2] == [(f"image {row}", "spoilt") for row in (40, 50)]
    dataset = StreamingDataset(images, 64, 0, workers=0)
    dataset.go_on(1000, dict.fromkeys(range(50, 240), "spoilt"))  # 4.8 % of all
    assert len(list(dataset.from_step(1000, 1062))) == 62
    assert len(dataset.skipped) == 191


def test_trouble_in_the_reading_thread_reaches_the_training() -> None:
    images = numbered(64)
    with (
        patch.object(Numbered, "read", side_effect=UserError("shard-7 cannot be read")),
        pytest.raises(UserError, match="shard-7"),
    ):
        taken(images, 16, 4)


def test_closing_stops_the_thread_and_memory_is_bounded() -> None:
    before = threading.active_count()
    images = numbered(60_000 // 4)
    batches = create_loader(images, batch_size=16, seed=0, device=CPU, workers=0).batches(0, 100_000)
    for _, batch in zip(range(3), batches, strict=False):
        assert len(batch.ids) == 16
    batches.close()
    assert threading.active_count() == before
    source = images.source
    assert isinstance(source, Numbered)
    # One window of each lane in use, one waiting, one in the making, and a chunk.
    assert len(source.asked) <= (2 * streaming.LEAST_LANES + 2) * streaming.MOST_WINDOW


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_pixels_are_those_of_the_store(own_cache: Path) -> None:
    """Gray, colour and 16 bits, of several sizes, small and larger than what is kept."""
    folder = write_images(own_cache / "set", [f"{i}.png" for i in range(6)], 9, 12)
    (folder / "gray.png").write_bytes(encode(noise(1, 7, 5, channels=1)))
    (folder / "large.png").write_bytes(encode(noise(2, 90, 70)))
    (folder / "deep.png").write_bytes(png16(np.arange(0, 60000, 500, dtype=np.uint16).reshape(10, 12, 1)))
    store, images = open_streaming(str(folder), seed=0, max_skipped=0.0, image_size=16, workers=0)
    stored = store.splits["train"]
    (batch,) = taken(images, 9, 1)
    assert sorted(batch.ids.tolist()) == list(range(9))
    for row, index in enumerate(batch.ids.tolist()):
        height, width = batch.sizes[row].tolist()
        assert [height, width] == stored.sizes[index].tolist()
        np.testing.assert_array_equal(
            batch.images[row, :, :height, :width], stored.batch([index])[0, :, :height, :width]
        )
        assert not batch.images[row, :, height:].any()
        assert images.names[int(images.indices[index])] == stored.names[index]


@contextmanager
def sampling(images: int, blocks: int, fetched: int) -> Iterator[None]:
    """Inside, samples are so large, and from so many blocks, or as many as have so many images."""
    with (
        patch.object(streaming, "SAMPLE_IMAGES", images),
        patch.object(streaming, "SAMPLE_BLOCKS", blocks),
        patch.object(streaming, "SAMPLE_FETCHED", fetched),
    ):
        yield


@pytest.mark.parametrize("run", [None, 10])
def test_the_store_is_a_sample(own_cache: Path, run: int | None) -> None:
    files = [encode(noise(i, 2, 2)) for i in range(120)]
    if run:
        pq.write_table(pa.table({"image": files}), own_cache / "a.parquet", row_group_size=run)
        data = own_cache / "a.parquet"
    else:
        data = own_cache / "set"
        data.mkdir()
        for number, file in enumerate(files):
            (data / f"{number:03d}.png").write_bytes(file)
    with sampling(24, blocks=4, fetched=40):
        store, images = open_streaming(str(data), seed=0, max_skipped=0.0, image_size=8, workers=0)
        again, _ = open_streaming(str(data), seed=0, max_skipped=0.0, image_size=8, workers=0)
    assert len(images) == 120
    assert len(store.splits["train"]) == 24
    if run:  # of four row groups
        groups = [int(name[-8:]) // run for name in store.splits["train"].names]
        assert len(set(groups)) == 4
    assert again.fingerprint == store.fingerprint
    assert again.from_cache
    whole = open_store(str(data), image_size=8, workers=0)
    assert len(whole.splits["train"]) == 120  # the sample does not pass for the set


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 12), st.integers(0, 3))
def test_what_is_fetched_for_a_sample(lengths: list[int], blocks: int, kinds: int, seed: int) -> None:
    """Whole blocks, a few or as many as have enough images, and as many classes as these may have."""
    of_block = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.arange(0, len(of_block), 2)  # those of one split among others
    labels = np.arange(len(of_block)) * kinds // len(of_block)
    labels[::7] = -1
    with sampling(10, blocks, fetched=20):
        fetched = streaming._fetched(rows, of_block, labels, np.random.default_rng(seed))
    of_each = np.bincount(of_block[rows])
    chosen, there = set(of_block[fetched].tolist()), set(of_block[rows].tolist())
    np.testing.assert_array_equal(fetched, [row for row in rows if of_block[row] in chosen])
    assert len(chosen) >= min(blocks, len(there))
    assert len(fetched) >= 20 or chosen == there
    assert len(chosen) <= blocks or len(fetched) - max(of_each[list(chosen)]) < 20
    classes, sampled = (set(labels[some].tolist()) - {-1} for some in (rows, fetched))
    assert classes == sampled or len(chosen) <= len(sampled)  # each block brings a class of its own


def test_a_sample_of_one_sorted_row_group_has_all_classes() -> None:
    labels = np.arange(2000) // 200
    with sampling(200, blocks=4, fetched=400):
        taken = streaming._sample(np.arange(2000), np.zeros(2000, dtype=int), labels, 0)
    assert np.bincount(labels[taken]).min() >= 8


def test_sampled_test_images_are_of_sampled_classes(own_cache: Path) -> None:
    """Of shards sorted by class with more classes than are fetched; a class that no training image has stays."""
    files = [encode(noise(i, 2, 2)) for i in range(200)]
    for name, classes in (("train-0", 20), ("test-0", 21)):
        columns = {"image": files[: 8 * classes], "label": [i // 8 for i in range(8 * classes)]}
        pq.write_table(pa.table(columns), own_cache / f"{name}.parquet", row_group_size=4)
    with sampling(30, blocks=5, fetched=40):
        store, _ = open_streaming(str(own_cache), seed=0, max_skipped=0.0, image_size=8, workers=0)
    train, test = (store.splits[split].labels for split in ("train", "test"))
    assert train is not None
    assert test is not None
    known = set(train.tolist())
    assert len(known) >= 8  # of the ten row groups, nearly all
    assert 20 in test
    assert set(test.tolist()) <= known | {20}
    assert len(test) == 30
    assert store.label_notes == (
        "1 class in test only: 20",
        f"the sample that is measured has {len(known)} of 20 classes: figures are of these alone",
    )


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_the_fingerprint_follows_images_outside_the_sample(own_cache: Path, kind: str) -> None:
    """As far as their sizes tell; a copy has the same."""
    files = [encode(noise(i, 6, 6)) for i in range(40)]

    def written(folder: str, changed: int | None = None) -> str:
        (own_cache / folder).mkdir()
        images = [file + b"more" * (row == changed) for row, file in enumerate(files)]
        if kind == "tar":
            members = {f"{row:02}.png": image for row, image in enumerate(images)}
            write_tar(own_cache / folder / "a.tar", {"00.cls": b"1"} | members)
        else:
            pq.write_table(pa.table({"image": images}), own_cache / folder / "a.parquet", row_group_size=4)
        return open_streaming(str(own_cache / folder), seed=0, max_skipped=0.0, image_size=8, workers=0)[0].fingerprint

    with sampling(8, blocks=2, fetched=8):
        before = written("before")
        assert written("copy") == before
        others = [written(str(row), row) for row in range(0, 40, 9)]
    assert len({other.partition("-")[0] for other in [*others, before]}) == 1  # the sampled pixels are the same
    assert before not in others
