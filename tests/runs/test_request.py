"""What is asked for, before anything is trained."""

from pathlib import Path

import numpy as np
import pytest

from mocokit.commands.inputs import open_inputs
from mocokit.config import KnnConfig
from mocokit.errors import UserError
from mocokit.runs.request import Request, open_data
from tests.helpers import write_images


def test_weights_choose_the_recipe_to_go_on_unless_another_is_named():
    assert Request.of({"data": "d", "weights": "w"}).given["recipe"] == "continue"
    assert Request.of({"data": "d", "weights": "w", "recipe": "moco-v2"}).given["recipe"] == "moco-v2"
    assert "recipe" not in Request.of({"data": "d"}).given


def test_images_are_opened_as_options_and_recipe_say(tiny_run):
    data = open_data(Request.of({"data": str(tiny_run.data), "image_size": 8, "limit": 9}))
    assert len(data.images) == 9
    assert data.images is data.store.splits["train"]
    assert data.store.image_size == 8
    assert data.name == data.store.name


def test_a_run_is_not_called_like_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data, out in [("digits", "digits"), ("digits", "./digits"), (str(tmp_path / "images"), "images")]:
        with pytest.raises(UserError, match=f"^--out {Path(out)}: is what the data are called; choose another --out"):
            Request.of({"data": data, "out": out}).run_directory("name")
    assert Request.of({"data": "digits"}).run_directory("name").path == Path("runs/name")
    assert Request.of({"data": "digits", "recipe": "moco-v2"}).run_directory("name").path == Path("runs/name-moco-v2")


def test_a_subset_is_not_streamed(tiny_run):
    for name in ("limit", "imbalance"):
        with pytest.raises(UserError, match=f"--stream and --{name} exclude each other"):
            open_data(Request.of({"data": str(tiny_run.data), "stream": True, name: 9}))


def test_one_cell_of_a_study_by_hand(tiny_run):
    data = open_data(Request.of({"data": str(tiny_run.data), "image_size": 8, "limit": 21, "imbalance": 4}))
    assert sorted(np.bincount(data.images.labels)) == [3, 6, 12]
    inputs = open_inputs(KnnConfig(run=str(tiny_run.path), data=str(tiny_run.data), limit=21, imbalance=4.0))
    assert inputs.store.main.names == data.images.names


def test_a_recipe_may_say_how_images_are_cut(tmp_path):
    data = str(write_images(tmp_path / "data", [f"{number}.png" for number in range(8)], 32, 48))
    (tmp_path / "tiles.yaml").write_text("tiles: 16\n")
    request = Request.of({"data": data, "image_size": 8, "recipe": str(tmp_path / "tiles.yaml")})
    assert len(open_data(request).images) == 8 * 6
    whole = Request.of({**request.given, "tiles": 0})
    assert len(open_data(whole).images) == 8
    assert open_data(request).store.splits["train"].groups.tolist() == [row for row in range(8) for _ in range(6)]
