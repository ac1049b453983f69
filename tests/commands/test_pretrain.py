"""``mocokit pretrain`` from images to an encoder: what it writes, what it takes, what it says."""

import csv
import io
import itertools
import json
import os
import shlex
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mocokit
from mocokit.cli import main
from mocokit.commands import pretrain as module
from mocokit.config import FIELDS
from mocokit.deploy.encoder_file import read_header
from mocokit.errors import UserError
from mocokit.evaluation.metrics import wilson_interval
from mocokit.rundir import RunDirectory
from mocokit.training.log import read_rows
from tests.helpers import archive, encode, noise, png16, png_header, write_images
from tests.tiny_runs import TINY, TinyRun, coloured_data, tiny_data

SHORT = TINY | {"steps": 3}
del SHORT["epochs"]
WHO = ["encoder", "random_init", "raw_pixels", "colour_histogram"]
SCORES = {"rankme", "effective_dimension", "alignment", "uniformity", "retrieval"}


def pretrain(data: Path, out: Path, **options: object) -> dict:
    """A run of three steps."""
    return mocokit.pretrain(str(data), out=str(out), **(SHORT | options))


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(run / "encoder.safetensors") for run in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What a run leaves ---------------------------------------------------------------------------------------


def test_result(tiny_run: TinyRun):
    result = tiny_run.result
    contract = "run recipe images skipped epochs steps wall_s loss loss_over_chance verdict knn scorecard"
    assert set(contract.split()) <= set(result)
    assert result["run"] == str(tiny_run.path)
    assert (result["recipe"], result["images"], result["skipped"]) == ("auto", 72, 0)
    assert (result["epochs"], result["steps"]) == (3, 27)
    assert result["loss_over_chance"] == pytest.approx(result["loss"] / np.log(17))
    assert list(result["knn"]) == list(result["scorecard"]) == list(result["retrieval_ci95"]) == WHO
    for who in WHO:
        assert set(result["knn"][who]) == {"top1", "top5", "ci95"}
        assert result["knn"][who]["ci95"] == pytest.approx(wilson_interval(result["knn"][who]["top1"], 48))
        low, high = result["retrieval_ci95"][who]
        assert 0 <= low <= result["scorecard"][who]["retrieval"] <= high <= 1
        assert 0 <= result["knn"][who]["top1"] <= 1
        assert result["knn"][who]["top5"] is None  # of three classes
        assert set(result["scorecard"][who]) == SCORES
    assert json.loads((tiny_run.path / "results" / "pretrain.json").read_text()) == result


def test_simple_features_are_in_the_verdict(tiny_run: TinyRun):
    """The colour is the class, and 27 steps of noise teach little."""
    knn, verdict = tiny_run.result["knn"], tiny_run.result["verdict"]
    assert knn["raw_pixels"]["top1"] == 1 > knn["encoder"]["top1"]
    assert "no better than raw pixels (100.0 %)" in verdict
    assert "largest class" not in verdict  # a third of the images
    assert knn["encoder"]["top1"] > 0.5


def test_run_directory(tiny_run: TinyRun):
    files = {p.relative_to(tiny_run.path).as_posix() for p in tiny_run.path.rglob("*") if p.is_file()}
    files -= {f"results/{verb}.json" for verb in ("knn", "scorecard", "probe", "finetune", "report")}  # of other tests
    event_files = {name for name in files if name.startswith("tensorboard/events.out.tfevents")}
    assert event_files
    projector = {f"tensorboard/00000/features/{name}" for name in ("metadata.tsv", "sprite.png", "tensors.tsv")}
    assert files - event_files == projector | {
        "tensorboard/projector_config.pbtxt",
        *("config.yaml", "data.json", "checkpoints/last.ckpt", "encoder.safetensors"),
        *("metrics.csv", "skipped.csv", "images.png", "results/pretrain.json"),
    }
    assert (tiny_run.path / "skipped.csv").read_text() == "image,reason\n"
    config = yaml.safe_load((tiny_run.path / "config.yaml").read_text())
    assert set(config) == set(FIELDS) | {"versions", "reasons"}
    assert set(config["reasons"]) == set(FIELDS) - set(TINY) - {"data", "out"}
    assert config["versions"]["torch"]
    assert config["backbone"] == "resnet18_narrow"


def test_metrics(tiny_run: TinyRun):
    rows = metrics(tiny_run.path)
    assert {"step", "epoch", "loss", "loss_over_chance", "images_per_second", "knn_top1"} <= set(rows[0])
    assert [int(row["step"]) for row in rows] == [0, *sorted({*range(2, 28, 2), 9, 18, 27})]
    assert [int(row["epoch"]) for row in rows] == [-(-int(row["step"]) // 9) for row in rows]
    measured = [int(row["step"]) for row in rows if row["knn_top1"]]
    assert measured == [0, 9, 18, 27]
    assert all(row["rankme"] and row["retrieval"] for row in rows if int(row["step"]) in measured)
    assert rows[0]["loss"] == ""
    for row in rows[1:]:
        assert float(row["loss"]) > 0
        assert float(row["images_per_second"]) > 0
        assert -1 <= float(row["negative"]) <= 1
    assert rows[-1]["queue_fill"] == "1"
    assert float(rows[-1]["loss"]) == pytest.approx(tiny_run.result["loss"])


def test_tensorboard(tiny_run: TinyRun):
    found = events(tiny_run.path)
    rows = metrics(tiny_run.path)
    losses = found.Scalars("train/loss")
    assert [event.step for event in losses] == [int(row["step"]) for row in rows if row["loss"]]
    assert losses[-1].value == pytest.approx(tiny_run.result["loss"], rel=1e-5)
    assert {"knn/top1", "train/grad_norm", "speed/images_per_second", "features/rankme"} <= set(found.Tags()["scalars"])
    weights = {f"encoder_q.0.{name}" for name in ("conv1.weight", "layer4.1.bn2.bias")}
    assert weights <= set(found.Tags()["histograms"])
    assert [event.step for event in found.Histograms("encoder_q.0.conv1.weight")] == [9, 18, 27]
    assert [event.step for event in found.Images("two views")] == [0]
    board = tiny_run.path / "tensorboard"
    with (board / "00000" / "features" / "metadata.tsv").open(newline="", encoding="utf-8") as file:
        told = list(csv.DictReader(file, delimiter="\t"))
    assert [row["image"].split("/")[-2] for row in told] == [row["class"] for row in told]
    assert [int(row["row"]) for row in told] == list(range(tiny_run.result["images"]))
    features = np.loadtxt(board / "00000" / "features" / "tensors.tsv")
    paths = [tiny_run.data / "train" / row["class"] / row["image"].split("/")[-1] for row in told]
    expected = torch.nn.functional.normalize(mocokit.load(tiny_run.path).embed(paths))
    np.testing.assert_allclose(features, expected.numpy(), atol=2e-5)


def test_histograms_can_be_turned_off(tmp_path):
    pretrain(tiny_data(tmp_path), tmp_path / "run", histograms=False)
    tags = events(tmp_path / "run").Tags()
    assert tags["histograms"] == tags["images"] == []
    assert "train/loss" in tags["scalars"]
    assert [path.name.split(".")[0] for path in (tmp_path / "run" / "tensorboard").iterdir()] == ["events"]


def test_encoder_header(tiny_run: TinyRun):
    spec, about = read_header(tiny_run.path)
    assert (spec.backbone, spec.image_size, spec.channels) == ("resnet18_narrow", 8, 3)
    assert about["recipe"] == "auto"
    assert about["data_fingerprint"] == tiny_run.result["data_fingerprint"]
    assert about["versions"]["torch"]


# What it takes -------------------------------------------------------------------------------------------


def test_unlabelled_images(tmp_path, monkeypatch, capfd):
    data = write_images(tmp_path / "photos", [f"{i:02d}.png" for i in range(24)])
    result = pretrain(data, tmp_path / "run")
    assert result["knn"] is None
    assert set(result["scorecard"]["encoder"]) == set(result["scorecard"]["random_init"]) == SCORES
    assert "two-view retrieval" in result["verdict"]
    rows = metrics(tmp_path / "run")
    assert {row["knn_top1"] for row in rows} == {""}
    assert all(rows[i][name] for i in (0, -1) for name in SCORES)
    stderr = capfd.readouterr().err
    assert "no labels" in stderr
    assert "two-view retrieval" in stderr
    monkeypatch.chdir(tmp_path)  # what is proposed works, in this order
    proposed = [line.partition(": mocokit ")[2] for line in stderr.splitlines() if ": mocokit " in line]
    assert [line.split()[0] for line in proposed] == ["scorecard", "embed", "search"]
    assert [main(shlex.split(line)) for line in proposed] == [0, 0, 0]
    assert (tmp_path / "nearest.png").exists()


def test_classes_that_do_not_meet_are_not_measured(tmp_path, capfd):
    data = write_images(
        tmp_path / "data", [f"{name}/{i}.png" for name in ("train/a", "train/b", "test/c") for i in range(8)]
    )
    assert pretrain(data, tmp_path / "run")["knn"] is None
    stderr = capfd.readouterr().err
    assert "1 class in test only: c" in stderr
    assert "kNN is not measured: training and test images have no class in common (a, b here, c there)" in stderr


@pytest.mark.parametrize("stream", [False, True])
def test_test_images_alone(tmp_path, stream):
    data = write_images(tmp_path / "data", [f"test/{name}/{i}.png" for name in "ab" for i in range(8)])
    with pytest.raises(UserError, match=r"data has no images to train on: .* add a train folder or shard, or name the"):
        pretrain(data, tmp_path / "run", stream=stream)
    assert pretrain(data / "test", tmp_path / "run", stream=stream)["images"] == 16


def test_nested_folders(tmp_path, capfd):
    names = [f"{a}/{b}/{i}.png" for a in ("2023", "2024") for b in ("may", "june") for i in range(6)]
    result = pretrain(write_images(tmp_path / "photos", [*names, "cover.png"]), tmp_path / "run")
    assert (result["images"], result["knn"]) == (25, None)


def test_an_archive_trains_exactly_as_its_folder(tmp_path):
    folder = coloured_data(tmp_path / "data", train=8, test=4)
    packed = archive(folder, tmp_path / "data.tar.xz")
    runs = [tmp_path / "folder", tmp_path / "archive"]
    results = [pretrain(data, run) for data, run in zip((folder, packed), runs, strict=True)]
    assert results[0]["data_fingerprint"] == results[1]["data_fingerprint"]
    assert results[0]["knn"] == results[1]["knn"]
    assert same_weights(*runs)


@pytest.mark.parametrize("channels", [1, 5])
def test_images_keep_their_channels(tmp_path, channels):
    (tmp_path / "data").mkdir()
    for i in range(20):
        pixels = noise(i, 9, 8, channels)
        if channels == 1:
            (tmp_path / "data" / f"{i}.png").write_bytes(encode(pixels))
        else:
            planes = pixels.transpose(2, 0, 1)
            path = tmp_path / "data" / f"{i}.tif"
            tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    result = pretrain(tmp_path / "data", tmp_path / "run")
    assert result["images"] == 20
    spec, _ = read_header(tmp_path / "run")
    assert spec.channels == len(spec.mean) == channels
    assert load_file(tmp_path / "run" / "encoder.safetensors")["conv1.weight"].shape[1] == channels
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["gray_p"] == config["flip_p"] == 0


def test_images_of_any_size_and_shape(tmp_path):
    (tmp_path / "data").mkdir()
    for i, (height, width) in enumerate(itertools.product((1, 7, 16, 90, 300), (2, 15, 33, 200))):
        (tmp_path / "data" / f"{i:02d}.png").write_bytes(encode(noise(i, height, width)))
    assert pretrain(tmp_path / "data", tmp_path / "run")["images"] == 20
    features = mocokit.load(tmp_path / "run").embed(sorted((tmp_path / "data").iterdir()))
    assert torch.isfinite(features).all()


def test_limit_takes_a_balanced_subset(tiny_run: TinyRun, tmp_path):
    result = pretrain(tiny_run.data, tmp_path / "run", limit=30)
    assert result["images"] == 30
    assert result["knn"] is not None


def test_the_same_seed_repeats_bit_for_bit_and_another_does_not(tiny_run: TinyRun, tmp_path):
    runs = [tmp_path / name for name in ("a", "b", "c")]
    results = [pretrain(tiny_run.data, run, seed=seed) for run, seed in zip(runs, (1, 1, 2), strict=True)]
    timeless = [{k: v for k, v in r.items() if k not in ("run", "wall_s", "config")} for r in results]
    assert timeless[0] == timeless[1]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])
    assert results[0]["loss"] != results[2]["loss"]


def test_runs_are_named_after_data_and_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_data(tmp_path)
    (tmp_path / "mine.yaml").write_text("temperature: 0.3\nepochs: 50\n")
    assert mocokit.pretrain(str(data), **SHORT)["run"] == str(Path(f"runs/{tmp_path.name}-data"))
    result = mocokit.pretrain("data", recipe="mine.yaml", **SHORT)
    assert (result["run"], result["steps"]) == (str(Path(f"runs/{tmp_path.name}-data-mine")), 3)
    assert "temperature: 0.3" in (tmp_path / "runs" / f"{tmp_path.name}-data-mine" / "config.yaml").read_text()


def test_of_a_finished_run_what_is_damaged_is_made_again(tmp_path, capfd):
    """The encoder from the checkpoint; a last row that is lost is told."""
    data, out = str(tiny_data(tmp_path)), tmp_path / "run"
    first = mocokit.pretrain(data, out=str(out), **SHORT | {"log_every": 1})
    (out / "encoder.safetensors").write_bytes(b"abc")
    again = mocokit.pretrain(data, out=str(out), **SHORT | {"log_every": 1})
    assert (again["loss"], again["knn"]) == (first["loss"], first["knn"])
    assert mocokit.load(out).dim == 128
    rows = (out / "metrics.csv").read_text().splitlines(keepends=True)
    (out / "metrics.csv").write_text("".join(rows[:-1]) + rows[-1][:-9])
    (out / "encoder.safetensors").unlink()
    capfd.readouterr()
    other = mocokit.pretrain(data, out=str(out), **SHORT | {"log_every": 1})
    assert "metrics.csv lacks the last rows: the loss is that of step 2\n" in capfd.readouterr().err
    assert other["loss"] != first["loss"]
    (out / "metrics.csv").write_text(rows[0] + rows[-1][:-1])  # which may end in half a number
    (out / "results" / "pretrain.json").unlink()
    last = mocokit.pretrain(data, out=str(out), **SHORT | {"log_every": 1})
    assert "metrics.csv lacks the last rows: the loss is left out\n" in capfd.readouterr().err
    assert (last["loss"], last["loss_over_chance"], last["knn"]) == (None, None, first["knn"])
    assert mocokit.pretrain(data, out=str(out), **SHORT | {"log_every": 1}) == last


def test_a_run_that_was_moved_below_a_name_that_is_not_utf8_has_no_projector(tmp_path, monkeypatch):
    """Though TensorBoard has written there before."""
    (tmp_path / "b\udce9" / "run" / "tensorboard").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b\udce9")
    task = SimpleNamespace(config=SimpleNamespace(histograms=True, evaluate=True, knn_images=None))
    module._write_projector(task, None, RunDirectory(Path("run")))
    assert list((tmp_path / "b\udce9" / "run" / "tensorboard").iterdir()) == []


def test_a_recipe_names_images_and_weights_as_options_do(tmp_path):
    data, out, recipe = str(tiny_data(tmp_path)), tmp_path / "run", tmp_path / "mine.yaml"
    first = mocokit.pretrain(data, out=str(tmp_path / "first"), **SHORT)
    assert first["images"] == 40
    recipe.write_text(f"limit: 20\nweights: {first['run']}\n")
    again = [mocokit.pretrain(data, recipe=str(recipe), out=str(out), **SHORT) for _ in range(2)]
    assert again[0] == again[1]
    assert (again[0]["images"], again[0]["config"]["limit"]) == (20, 20)
    assert (out / "initial.safetensors").exists()
    assert yaml.safe_load((out / "config.yaml").read_text())["reasons"]["limit"] == f"recipe {recipe}"
    recipe.write_text(f"limit: 24\nweights: {first['run']}\n")
    with pytest.raises(mocokit.UserError, match=r"--limit 24 by the recipe \(was 20\)"):
        mocokit.pretrain(data, recipe=str(recipe), out=str(out), **SHORT)
    days = tmp_path / "days"
    for here, there in (("train", "monday"), ("test", "friday")):
        shutil.copytree(tmp_path / "data" / here, days / there)
    recipe.write_text("train: monday\ntest: friday\n")
    named = mocokit.pretrain(str(days), recipe=str(recipe), out=str(tmp_path / "days-run"), **SHORT)
    assert (named["images"], named["config"]["train"], named["config"]["test"]) == (40, "monday", "friday")
    recipe.write_text("out: elsewhere\nthreads: 1\n")
    with pytest.raises(mocokit.UserError, match="--out, --threads can't stand in a recipe; give the file as --config"):
        mocokit.pretrain(data, recipe=str(recipe), **SHORT)


# An awkward folder ---------------------------------------------------------------------------------------


def good_files() -> dict[str, bytes]:
    """One file of every format and mode that pictures come in."""
    size = {"height": 20, "width": 28}
    rgb = Image.fromarray(noise(1, **size))
    gray = Image.fromarray(noise(2, **size, channels=1))
    alpha = Image.fromarray(noise(3, **size, channels=4), "RGBA")
    deep = np.random.default_rng(4).integers(100, 5000, (20, 28), dtype=np.uint16)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    palette = rgb.quantize(16)

    def tiff(pixels: np.ndarray, **options: object) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, **options)
        return buffer.getvalue()

    frames = [Image.fromarray(noise(i, **size)) for i in range(3)]
    return {
        "jpeg rgb.jpg": encode(rgb, "JPEG"),
        "jpeg gray.jpeg": encode(gray, "JPEG"),
        "jpeg cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "jpeg rotated.jpg": encode(rgb, "JPEG", exif=rotated),
        "jpeg progressive.JPG": encode(rgb, "JPEG", progressive=True),
        "png rgb.png": encode(rgb),
        "png gray.png": encode(gray),
        "png 1 bit.png": encode(gray.convert("1")),
        "png 16 bit.png": encode(Image.fromarray(deep)),
        "png 16 bit rgb.png": png16(np.stack([deep] * 3, axis=2)),
        "png palette.png": encode(palette),
        "png palette transparent.png": encode(palette, transparency=3),
        "png gray alpha.png": encode(alpha.convert("LA")),
        "png rgba.png": encode(alpha),
        "bmp rgb.bmp": encode(rgb, "BMP"),
        "bmp gray.bmp": encode(gray, "BMP"),
        "tiff rgb.tif": encode(rgb, "TIFF"),
        "tiff lzw.tif": encode(rgb, "TIFF", compression="tiff_lzw"),
        "tiff cmyk.tif": encode(rgb.convert("CMYK"), "TIFF"),
        "tiff 16 bit.tiff": encode(Image.fromarray(deep), "TIFF"),
        "tiff 16 bit big-endian.tif": tiff(deep, byteorder=">"),
        "tiff float.tif": tiff(deep.astype(np.float32) / 7),
        "tiff pages.tif": encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "webp.webp": encode(rgb, "WEBP"),
        "webp alpha.webp": encode(alpha, "WEBP", lossless=True),
        "gif.gif": encode(palette, "GIF"),
        "gif animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "ppm.ppm": encode(rgb, "PPM"),
        "pgm.pgm": encode(gray, "PPM"),
        "pbm.pbm": encode(gray.convert("1"), "PPM"),
        "one pixel.png": encode(noise(5, 1, 1)),
        "strip.png": encode(noise(6, 3, 400)),
        "a png called.jpg": encode(rgb),
    }


def broken_files() -> dict[str, bytes]:
    rgb = Image.fromarray(noise(1, 20, 28))
    return {
        "cut off.jpg": encode(rgb, "JPEG")[:-200],
        "cut off.png": encode(rgb)[:-100],
        "text.jpg": b"This is not a picture.\n",
        "nothing.png": b"",
        "bomb.png": png_header(60_000, 60_000),
        "page.html.gif": b"<html><body>404</body></html>",
    }


@pytest.fixture(scope="module")
def awkward(tmp_path_factory) -> tuple[Path, set[str]]:
    """A folder of all kinds of files, and the names of those that can't be used."""
    folder = tmp_path_factory.mktemp("awkward") / "pictures"
    folder.mkdir()
    for name, content in (good_files() | broken_files()).items():
        (folder / name).write_bytes(content)
    os.symlink("loop.png", folder / "loop.png")
    (folder / "notes.txt").write_text("not an image, and not named like one")
    return folder, {*broken_files(), "loop.png"}


def test_an_awkward_folder_is_refused_with_a_count_and_a_way_out_then_trains(awkward, tmp_path, capfd):
    folder, broken = awkward
    out = tmp_path / "run"
    found = len(good_files()) + len(broken)
    arguments = ["pretrain", str(folder), "--out", str(out), "--steps=3", "--batch-size=8", "--device=cpu"]
    assert main(arguments) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert f"{len(broken)} of {found} images" in line
    assert line.endswith(f"--max-skipped; {out / 'skipped.csv'} lists them")
    assert skipped(out) == broken
    assert main([*arguments, "--max-skipped", "0.3", "--json"]) == 0  # in the same place: it is no run yet
    stdout, stderr = capfd.readouterr()
    assert f"{out / 'skipped.csv'} lists the images that can't be used" in stderr
    result = json.loads(stdout)
    assert (result["images"], result["skipped"]) == (len(good_files()), len(broken))
    assert skipped(out) == broken
    spec, _ = read_header(out)
    assert spec.channels == 3
    assert spec.intensity_range is None  # there are 8-bit images among them
    features = mocokit.load(out).embed([folder / name for name in good_files()])
    assert torch.isfinite(features).all()


def test_a_list_of_unusable_images_is_named_only_where_it_is(awkward, tiny_run: TinyRun, tmp_path, monkeypatch, capfd):
    folder, broken = awkward
    monkeypatch.chdir(tmp_path)
    for verb in (["pretrain", str(folder)], ["knn", str(tiny_run.path), str(folder)]):
        assert main(verb) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert ("skipped.csv" in line) == (verb[0] == "pretrain")
    assert skipped(Path(f"runs/{folder.parent.name}-pictures")) == broken
    run = tmp_path / "run"
    pretrain(tiny_run.data, run)
    before = (run / "skipped.csv").read_bytes()
    assert main(["pretrain", str(folder), "--out", str(run)]) == 2
    assert "skipped.csv" not in capfd.readouterr().err  # that of another run stays
    assert (run / "skipped.csv").read_bytes() == before
    assert main(["scorecard", str(tiny_run.path), str(folder), "--max-skipped=0.3", "--device=cpu"]) == 0
    err = capfd.readouterr().err
    assert f"{len(broken)} skipped (the first is " in err
    assert "skipped.csv" not in err


def skipped(run: Path) -> set[str]:
    with (run / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["reason"] for row in rows)
    return {row["image"] for row in rows}


def test_identical_images_are_no_collapse(tmp_path, capfd):
    (tmp_path / "data").mkdir()
    for i in range(20):
        (tmp_path / "data" / f"{i}.png").write_bytes(encode(np.full((8, 8, 3), 90, np.uint8)))
    result = pretrain(tmp_path / "data", tmp_path / "run", queue_size=8)
    assert result["verdict"].startswith("images all but alike: ")
    told = capfd.readouterr().err
    assert "verdict: images all but alike" in told
    assert "when the queue is full, after 1 step\n" in told


# From Python ---------------------------------------------------------------------------------------------


def test_python_api(tiny_run: TinyRun):
    again = mocokit.pretrain(tiny_run.data, out=tiny_run.path, **TINY)  # finished: nothing is done
    assert again == tiny_run.result
    encoder = mocokit.load(tiny_run.path)
    assert isinstance(encoder, mocokit.Encoder)
    features = encoder.embed([tiny_run.data / "test" / "class0" / "000.png"])
    assert features.shape == (1, 128)
    assert not features.requires_grad


@pytest.mark.parametrize("content", ["", "[1]", '{"verdict": 1}', '{"loss": "x"}'])
def test_a_result_of_another_structure_is_measured_again(tiny_run: TinyRun, tmp_path, content):
    path = shutil.copytree(tiny_run.path, tmp_path / "run")
    (path / "results" / "pretrain.json").write_text(content)
    again = mocokit.pretrain(tiny_run.data, out=path, **TINY)
    figures = ("images", "steps", "loss", "verdict", "scorecard", "retrieval_ci95", "data_fingerprint")
    assert {name: again[name] for name in figures} == {name: tiny_run.result[name] for name in figures}
    assert [again["knn"][who]["top1"] for who in again["knn"]] == [
        tiny_run.result["knn"][who]["top1"] for who in again["knn"]
    ]
    assert json.loads((path / "results" / "pretrain.json").read_text()) == again


def test_python_api_refuses_like_the_command(tmp_path):
    data = str(tiny_data(tmp_path))
    with pytest.raises(mocokit.UserError, match="did you mean 'batch_size'"):
        mocokit.pretrain(data, batchsize=3)
    with pytest.raises(mocokit.UserError, match="exclude each other"):
        mocokit.pretrain(data, steps=3, epochs=1)
    with pytest.raises(mocokit.UserError, match="--symmetric: expected true or false"):
        mocokit.pretrain(data, symmetric=1)


# Real photographs ----------------------------------------------------------------------------------------


def few(packed: Path, folder: Path, train: int, test: int) -> Path:
    """An archive of the first images of each of CIFAR-10's classes: the whole test split takes a minute itself."""
    counts = {"train": train // 10, "test": test // 10}
    taken: Counter[str] = Counter()
    with tarfile.open(packed) as source, tarfile.open(folder / "photographs.tar.xz", "w:xz") as target:
        for member in source:
            place = member.name.rpartition("/")[0]
            if member.isfile() and taken[place] < counts[Path(place).parts[0]]:
                taken[place] += 1
                target.addfile(member, source.extractfile(member))
    return folder / "photographs.tar.xz"


@pytest.mark.slow
def test_it_learns_from_real_photographs(cifar10: Path, tmp_path):
    data = few(cifar10, tmp_path, train=2000, test=1000)
    result = mocokit.pretrain(str(data), out=str(tmp_path / "run"), limit=1000, epochs=10, device="cpu", report=False)
    assert result["images"] == 1000
    assert not result["verdict"].startswith("collapsed")
    encoder, random_init = (result["scorecard"][who] for who in ("encoder", "random_init"))
    assert encoder["retrieval"] > 1.3 * random_init["retrieval"]
    assert result["knn"]["encoder"]["top1"] > result["knn"]["random_init"]["top1"] - 0.02


def test_a_short_run_need_not_be_measured(tiny_run: TinyRun, tmp_path, monkeypatch, capfd):
    """Nothing is encoded, and the result says so; the verbs that measure do it later."""
    options = {name: value for name, value in TINY.items() if name not in ("epochs", "monitor_every", "report")}
    options |= {"steps": 2, "evaluate": False, "out": str(tmp_path / "run")}
    with monkeypatch.context() as patched:
        patched.setattr("mocokit.evaluation.evaluator.Evaluator.evaluate", lambda *_: pytest.fail("measured"))
        patched.setattr("mocokit.commands.pretrain.report", lambda *_, **__: pytest.fail("reported"))
        patched.setattr("mocokit.runs.held_out.near_duplicates", lambda *_: pytest.fail("searched"))
        result = mocokit.pretrain(str(tiny_run.data), **options)
    assert (result["steps"], result["verdict"]) == (2, "not measured (--no-evaluate)")
    assert [result[name] for name in ("test", "knn", "scorecard", "retrieval_ci95")] == [None] * 4
    assert result["loss_over_chance"] is None  # two steps fill the queue
    assert result["config"]["evaluate"] is False
    assert result.keys() == tiny_run.result.keys()
    assert f"next: mocokit scorecard {tmp_path / 'run'}" in capfd.readouterr().err
    assert mocokit.pretrain(str(tiny_run.data), **options) == result
    assert mocokit.knn(str(tmp_path / "run"), str(tiny_run.data), device="cpu")["encoder"]["top1"] > 0


def test_checks_that_are_asked_for_are_made_without_final_figures(tiny_run: TinyRun, tmp_path):
    out = str(tmp_path / "run")
    result = mocokit.pretrain(str(tiny_run.data), out=out, **TINY | {"epochs": 1, "evaluate": False})
    assert result["knn"] is None
    assert all(row["knn_top1"] for row in read_rows(Path(out, "metrics.csv")) if row["step"] in ("0", "9"))
