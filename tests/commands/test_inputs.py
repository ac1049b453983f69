"""The inputs of the evaluating verbs: the run's own encoder and initialisation, and images that suit it."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import mocokit
from mocokit.cli import main
from mocokit.commands.inputs import open_inputs, tiles_of
from mocokit.config import KnnConfig
from mocokit.data.tiles import Grid, origin_of
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder
from tests.helpers import encode, noise, write_images
from tests.tiny_runs import FLAGS, TinyRun


def test_encoder_and_initialisation_are_those_of_the_run(tiny_run: TinyRun):
    inputs = open_inputs(KnnConfig(run=str(tiny_run.path), data=str(tiny_run.data), device="cpu"))
    trained, initial = (mocokit.load(tiny_run.path), Encoder.create(inputs.spec, tiny_run.result["config"]["seed"]))
    for name, parameter in inputs.encoder.named_parameters():
        assert torch.equal(parameter, trained.get_parameter(name))
        assert torch.equal(inputs.random_init.get_parameter(name), initial.get_parameter(name))
    assert not inputs.encoder.training
    assert not inputs.random_init.training


def test_images_suit_the_encoder(tiny_run: TinyRun):
    """Gray digits for an encoder of small colour images."""
    inputs = open_inputs(KnnConfig(run=str(tiny_run.path), data="digits", limit=20))
    assert (inputs.store.channels, inputs.store.image_size) == (3, inputs.spec.image_size)
    assert len(inputs.store.splits["train"]) == 20


def test_missing_labels_are_named(tiny_run: TinyRun, tmp_path):
    data = write_images(tmp_path / "flat", ["a.png", "b.png"])
    config = KnnConfig(run=str(tiny_run.path), data=str(data))
    with pytest.raises(UserError, match="kNN needs labels"):
        open_inputs(config, labels_for="kNN")
    assert open_inputs(config).store.label_names is None


# Tiles ------------------------------------------------------------------------------------------------------

IMAGES, SHAPE, GRID = 12, (50, 66), Grid(3, 4)  # of tiles of 16 pixels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large images of two kinds, without class folders, and a table of labels beside them."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(IMAGES):
        tint = np.array([60, 0, 0] if number % 2 else [0, 60, 0])
        pixels = (noise(number, *SHAPE) // 4 * 3 + tint).astype(np.uint8)
        (folder / f"scene {number}.png").write_bytes(encode(pixels))
    rows = [f"scene {number},{'red' if number % 2 else 'green'}" for number in range(IMAGES)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    return folder


@pytest.fixture(scope="module")
def tiled_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiled"
    words = [
        "pretrain",
        str(scenes),
        "--tiles",
        "16",
        "--labels",
        str(scenes / "labels.csv"),
        "--out",
        str(run),
        *FLAGS,
    ]
    assert main(words) == 0
    return run


def test_a_run_remembers_its_tiles(tiled_run: Path, scenes: Path, tmp_path: Path):
    labels = {"labels": str(scenes / "labels.csv")}
    encoder = mocokit.load(tiled_run)
    assert (tiles_of(None, encoder), tiles_of(0, encoder), tiles_of(99, encoder)) == (16, 0, 99)
    found = mocokit.knn(str(tiled_run), str(scenes), **labels)
    assert found["test"]["held_out"]["by"] == "image"
    assert found["test"]["images"] % (GRID.rows * GRID.columns) == 0
    assert mocokit.knn(str(tiled_run), str(scenes), tiles=0, **labels)["test"]["images"] < IMAGES
    assert mocokit.scorecard(str(tiled_run), str(scenes))["images"] == IMAGES * GRID.rows * GRID.columns
    mocokit.finetune(str(tiled_run), str(scenes), epochs=1, baseline=False, out=str(tmp_path / "tuned"), **labels)
    assert tiles_of(None, mocokit.load(tmp_path / "tuned")) == 16


def test_tiles_are_embedded_found_drawn_and_chosen_by_name(tiled_run: Path, scenes: Path, tmp_path: Path, capfd):
    run = str(shutil.copytree(tiled_run, tmp_path / "run"))
    features = str(tmp_path / "features.parquet")
    rows = IMAGES * GRID.rows * GRID.columns
    assert mocokit.embed(run, str(scenes), features)["rows"] == rows
    paths = pq.read_table(features)["path"].to_pylist()
    assert paths[:13] == [*GRID.names("scene 0.png"), "scene 1.png#r0c0"]
    again = mocokit.embed(run, str(scenes), str(tmp_path / "whole.npz"), tiles=0)
    assert again["rows"] == IMAGES
    query = str(scenes / "scene 3.png")
    found = mocokit.search(features, [paths.index("scene 3.png#r2c3"), query], k=2, montage=str(tmp_path / "m.png"))
    assert found["queries"][0]["path"] == "scene 3.png#r2c3"
    assert (
        "the features are of tiles of about 16 pixels a side; image files are embedded whole" in capfd.readouterr().err
    )
    mocokit.select(run, str(scenes), 5, output=str(tmp_path / "select.csv"))
    with (tmp_path / "select.csv").open() as file:
        chosen = [row["image"] for row in csv.DictReader(file)]
    assert set(chosen) <= set(paths)
    left = mocokit.select(run, str(scenes), 5, given=str(tmp_path / "select.csv"), output=str(tmp_path / "more.csv"))
    assert left["given"] == 5
    (tmp_path / "given.csv").write_text("image\nscene 0.png\nscene 5\n")  # whole images are labelled already
    left = mocokit.select(run, str(scenes), 5, given=str(tmp_path / "given.csv"), output=str(tmp_path / "third.csv"))
    assert left["given"] == 2 * GRID.rows * GRID.columns
    assert not {origin_of(row["image"]) for row in left["selected"]} & {"scene 0.png", "scene 5.png"}


def test_a_report_is_about_the_tiles_of_the_run(tiled_run: Path, tmp_path: Path):
    pytest.importorskip("sklearn.manifold")
    found = mocokit.report(str(tiled_run), output=str(tmp_path / "report.html"))
    assert found["total"] == IMAGES * GRID.rows * GRID.columns
