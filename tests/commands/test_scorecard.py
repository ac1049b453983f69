"""``mocokit scorecard``: the figures of pretraining again, on any images, and what they mean."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mocokit.cli import main
from mocokit.commands.scorecard import scorecard
from mocokit.errors import UserError
from mocokit.evaluation.scorecard import SCORES
from tests.helpers import write_images
from tests.tiny_runs import TinyRun

WHO = ("encoder", "random_init", "raw_pixels", "colour_histogram")
NAMES = {score.name for score in SCORES}


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path) -> Path:
    """A copy of the finished run that may be written to."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return tmp_path / "run"


def test_figures_are_those_of_pretraining(tiny_run: TinyRun, run, capfd):
    assert main(["scorecard", str(run), str(tiny_run.data), "--device", "cpu", "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    result = json.loads(stdout)
    for who in WHO:
        assert result["scorecard"][who] == pytest.approx(tiny_run.result["scorecard"][who], rel=1e-5)
    assert result["scorecard"]["encoder"] != result["scorecard"]["random_init"]
    assert result["retrieval_ci95"] == tiny_run.result["retrieval_ci95"]
    assert "95 %: encoder {:.3f} to {:.3f}, random init".format(*result["retrieval_ci95"]["encoder"]) in stderr
    assert "encoder random init raw pixels colour histogram rankme" in " ".join(stderr.split())
    assert set(result["meaning"]) == NAMES
    assert result["images"] == tiny_run.result["images"]
    assert result["data_fingerprint"] == tiny_run.result["data_fingerprint"]
    assert json.loads((run / "results" / "scorecard.json").read_text()) == result
    for score in SCORES:
        (line,) = [line for line in stderr.splitlines() if line.startswith(score.name)]
        figures = [result["scorecard"][who][score.name] for who in WHO]
        assert line.split()[1:5] == [f"{figure:.3f}" for figure in figures]
        assert f"{score.better} is better" in line
        assert f"{score.definition} ({score.source})" in stderr
        assert result["meaning"][score.name] in stderr


def test_views_are_those_of_the_run(tiny_run: TinyRun, run):
    """Views that leave images as they are make two views equal."""
    as_trained = scorecard(str(run), str(tiny_run.data))["scorecard"]["encoder"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    plain = {"crop_min": 1.0, "flip_p": 0.0, "jitter_strength": 0.0, "gray_p": 0.0, "blur_p": 0.0}
    (run / "config.yaml").write_text(yaml.safe_dump(config | plain))
    still = scorecard(str(run), str(tiny_run.data))["scorecard"]["encoder"]
    assert still["alignment"] < 0.1 * as_trained["alignment"]
    assert still["rankme"] == as_trained["rankme"]


def test_an_encoder_file_alone_and_images_without_labels(tiny_run: TinyRun, run, tmp_path):
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(run / "encoder.safetensors", tmp_path / "alone")
    data = write_images(tmp_path / "flat", [f"{i}.png" for i in range(30)], 12, 9)
    result = scorecard(str(alone), str(data), images=20, seed=5)
    assert result["images"] == 20
    assert 0 <= result["scorecard"]["encoder"]["retrieval"] <= 1
    assert (result["scorecard"]["encoder"]["retrieval"] * 20) % 1 == pytest.approx(0, abs=1e-9)
    assert [p.name for p in (tmp_path / "alone").iterdir()] == ["encoder.safetensors"]
    again = scorecard(str(run), str(data), images=20, seed=5)  # the tiny run's views are those of v2
    assert set(again["scorecard"]["encoder"]) == NAMES
    assert again["scorecard"]["encoder"]["rankme"] == result["scorecard"]["encoder"]["rankme"]


def test_one_image_is_too_few(run, tmp_path):
    data = write_images(tmp_path / "one", ["a.png"])
    with pytest.raises(UserError, match="give at least 2"):
        scorecard(str(run), str(data))
    write_images(tmp_path / "one", ["b.png"])
    assert scorecard(str(run), str(data))["images"] == 2


@pytest.mark.parametrize(
    ("options", "message"), [({"images": 15}, "--images: 15 is too small"), ({"image": 20}, "did you mean 'images'")]
)
def test_mistakes(run, options, message):
    with pytest.raises(UserError, match=message):
        scorecard(str(run), "digits", **options)
