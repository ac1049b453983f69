"""What is lost in size, and tables that are not read, are said before a run; only where there is something to say."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mocokit.data.labels_file import read_labels
from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from mocokit.model.encoder import EncoderSpec
from mocokit.rundir import RunDirectory
from mocokit.runs.about_data import about_data, write_sheet
from tests.helpers import write_images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "my data", ["a.png", "b.png", "it's\nc.png"])


def lines(folder: Path, labels: str | None = None) -> list[str]:
    source = open_source(str(folder))
    return about_data(open_store(source, image_size=8), source, labels)


@pytest.mark.parametrize(
    ("median", "expected"), [(1200, "images are 1,200 px at their median, seen at 32 px: detail under 38 px is gone"),
                             (96, "images are 96 px at their median, seen at 32 px: detail under 3 px is gone"),
                             (95, None), (8, None), (None, None)])  # fmt: skip
def test_what_is_lost_is_said_from_a_third_on(folder: Path, median: float | None, expected: str | None):
    source = open_source(str(folder))
    store = replace(open_store(source, image_size=8), median_side=median, image_size=32)
    said = about_data(store, source, None)
    way = "a larger --image-size keeps more, or cut into tiles: --tiles 64"
    assert said == ([] if expected is None else [f"{expected}; {way}"])


def test_of_tiles_the_same_is_said(folder: Path):
    source = open_source(str(folder), tiles=999)
    (folder / "labels.csv").write_text("image,label\na.png,x\nb.png,y\n")
    store = replace(open_store(source, image_size=8), median_side=240, image_size=32)
    way = "detail under 8 px is gone; a larger --image-size keeps more, or smaller --tiles"
    size, table = about_data(store, source, None)
    assert size == f"tiles are 240 px at their median, seen at 32 px: {way}"
    assert table.startswith("labels.csv has labels of 2 images")


@pytest.mark.parametrize(("median", "size", "said"), [(32, 224, True), (75, 224, False), (8, 64, True), (8, 32, False)])
def test_images_that_are_enlarged_a_lot_cost_more_than_they_need(folder: Path, median: float, size: int, said: bool):
    source = open_source(str(folder))
    found = about_data(replace(open_store(source, image_size=8), median_side=median, image_size=size), source, None)
    assert (
        found
        == [
            f"images are {median} px at their median, enlarged to {size} px: "
            "a smaller --image-size is faster: the work goes with its square"
        ]
        * said
    )


def test_a_table_of_labels_is_named_with_the_option_that_reads_it(folder: Path):
    assert lines(folder) == []
    (folder / "labels.csv").write_text("image,label\na.png,x\nb.png,y\nz.png,x\n")
    (said,) = lines(folder)
    assert said.startswith("labels.csv has labels of 2 images, which are not used; to do so: --labels ")
    (path,) = shlex.split(said.partition("--labels ")[2])
    assert read_labels(path).match(["a.png"])[0].tolist() == [0]
    assert lines(folder, labels=path) == []


def test_other_tables_are_named(folder: Path):
    (folder / "sub").mkdir()
    (folder / "sub" / "boxes.json").write_text(json.dumps({"a.png": [1, 2]}))
    way = "labels in a CSV or Parquet table, a row an image, are: --labels FILE"
    assert lines(folder) == [f"sub/boxes.json is not used; {way}"]
    (folder / "empty.csv").write_text("")
    (folder / "others.tsv").write_text("image\tlabel\nelsewhere.png\tx\nfar.png\ty\n")
    (folder / "broken.parquet").write_bytes(b"no parquet")
    said = lines(folder)
    assert said == [f"broken.parquet, empty.csv, others.tsv and 1 more are not used; {way}"]
    (folder / "notes.txt").write_text("image,label\na.png,x\n")
    assert lines(folder) == said


def test_an_archive_has_nothing_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (9, 8, 8), dtype=np.uint8))
    assert lines(tmp_path / "x.npy") == []


def test_the_sheet_is_written_whole_and_named(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = RunDirectory(tmp_path / "run")
    store = open_store(str(folder), image_size=8)
    write_sheet(run, store, EncoderSpec("resnet18", 8, 3, (0.5,) * 3, (0.2,) * 3), 0)
    assert capfd.readouterr().err == f"{run.images}: some of the images, as the encoder sees them\n"
    with Image.open(run.images) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    assert [path.name for path in run.path.iterdir()] == ["images.png"]
