"""``mocokit knn``: figures side by side, which must agree with pretraining's and with scikit-learn's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import mocokit
from mocokit.cli import main
from mocokit.data.store import open_store
from mocokit.deploy.encoder_file import save_encoder
from mocokit.errors import UserError
from mocokit.evaluation.splits import split_labelled
from tests.encoders import ORIGIN
from tests.helpers import archive, class_folders, encode, noise, write_images
from tests.tiny_runs import TinyRun

WHO = ("encoder", "random_init", "raw_pixels", "colour_histogram")


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path) -> Path:
    """A copy of the finished run that may be written to."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return tmp_path / "run"


def test_result(tiny_run: TinyRun, run):
    result = mocokit.knn(str(run), str(tiny_run.data), k=20)
    for who in WHO:
        assert set(result[who]) == {"top1", "top5", "ci95", "balanced", "per_class", "wall_s"}
        rows = result[who]["per_class"].values()
        images, recalls = ([row[name] for row in rows] for name in ("images", "recall"))
        assert np.dot(images, recalls) / sum(images) == pytest.approx(result[who]["top1"])
        assert np.mean(recalls) == pytest.approx(result[who]["balanced"])
        assert 0 <= result[who]["top1"] <= 1
        assert result[who]["top5"] is None  # of three classes
    config = result["config"]
    assert (config["k"], config["temperature"], config["data"]) == (20, 0.1, str(tiny_run.data))
    assert result["data_fingerprint"] == tiny_run.result["data_fingerprint"]
    assert json.loads((run / "results" / "knn.json").read_text()) == result


def test_without_a_baseline_the_encoder_alone_is_measured(tiny_run: TinyRun, run, capfd):
    alone, beside = (mocokit.knn(str(run), str(tiny_run.data), baseline=baseline) for baseline in (False, True))
    assert set(WHO) - alone.keys() == set(WHO) - {"encoder"}
    assert alone["encoder"] | {"wall_s": 0} == beside["encoder"] | {"wall_s": 0}
    said = capfd.readouterr().err
    assert said.count("k 200: all 72 training images vote; --k 7 may say more\n") == 2  # once a command


def test_encoder_and_random_init_are_those_of_pretraining(tiny_run: TinyRun, run):
    result = mocokit.knn(str(run), str(tiny_run.data), device="cpu")
    for who in ("encoder", "random_init"):
        for name, value in tiny_run.result["knn"][who].items():
            assert result[who][name] == pytest.approx(value, abs=1e-6)
    assert result["encoder"]["top1"] != result["random_init"]["top1"]  # or the comparison would prove nothing


def pixels_of(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the images around mid-gray, and their classes."""
    files = sorted((folder / split).rglob("*.png"))
    x = np.stack([np.asarray(Image.open(file), float).ravel() for file in files]) / 255 - 0.5
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.array([file.parent.name for file in files])


def vote(k: int) -> KNeighborsClassifier:
    """Weights exp(cosine / 0.1); unit vectors at distance d have the cosine 1 - d**2 / 2."""
    return KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1), algorithm="brute")


@pytest.fixture
def squares(tmp_path) -> Path:
    """LabelledSplits 8 x 8 images, the size that the run's encoder takes: nothing is resized."""
    folder = class_folders(tmp_path / "squares", classes=4, train=15, test=12)
    for i, file in enumerate(sorted(folder.rglob("*.png"))):
        tint = np.roll([25, 0, 0, 0], int(file.parent.name[-1]))[:3]
        file.write_bytes(encode((noise(i) // 10 * 9 + tint).astype(np.uint8)))
    return folder


@pytest.mark.parametrize("k", [1, 5, 60])
def test_pixels_are_what_scikit_learn_makes_of_them(run, squares, k):
    bank, queries = pixels_of(squares, "train"), pixels_of(squares, "test")
    expected = vote(k).fit(*bank).score(*queries)
    assert 0.3 < expected < 1
    assert mocokit.knn(str(run), str(squares), k=k)["raw_pixels"]["top1"] == pytest.approx(expected)


def test_without_a_test_split_the_held_out_images_are_classified_by_the_others(run, squares, capfd):
    x, labels = pixels_of(squares, "train")
    store = open_store(str(squares / "train"), image_size=8)
    parts = split_labelled(store, seed=1)
    bank, queries = parts.train_val.indices.numpy(), parts.test.indices.numpy()
    assert (len(bank), len(queries)) == (48, 12)
    result = mocokit.knn(str(run), str(squares / "train"), k=3, seed=1)
    assert result["raw_pixels"]["top1"] == pytest.approx(
        vote(3).fit(x[bank], labels[bank]).score(x[queries], labels[queries])
    )
    assert (result["test"]["images"], result["test"]["held_out"]) == (12, {"share": 0.2, "seed": 1, "by": None})


def test_images_without_a_label_are_not_asked(run, squares, capfd):
    expected = mocokit.knn(str(run), str(squares), k=3)
    (squares / "train" / "cover.png").write_bytes(encode(noise(0)))
    (squares / "test" / "class0" / "more").mkdir()
    (squares / "test" / "class0" / "more" / "deep.png").write_bytes(encode(noise(1)))
    capfd.readouterr()
    result = mocokit.knn(str(run), str(squares), k=3)
    assert [result[who]["top1"] for who in ("encoder", "raw_pixels")] == [
        expected[who]["top1"] for who in ("encoder", "raw_pixels")
    ]
    stderr = capfd.readouterr().err
    assert "2 of 110 images have no label, first test/class0/more/deep.png: left out of kNN" in stderr
    assert "tested on 48 images of test; 60 of train have labels" in stderr


def test_a_test_split_alone_or_without_labels(run, squares, capfd):
    expected = mocokit.knn(str(run), str(squares / "test"), k=3)["raw_pixels"]["top1"]
    shutil.rmtree(squares / "train")
    assert mocokit.knn(str(run), str(squares), k=3)["raw_pixels"]["top1"] == expected
    assert "labels in test only: 8 of 48 images are held out" in capfd.readouterr().err
    write_images(squares, ["train/a.png", "train/b.png"])
    assert mocokit.knn(str(run), str(squares), k=3)["raw_pixels"]["top1"] == expected


def test_classes_that_do_not_meet_are_refused(run, squares):
    for folder in sorted((squares / "test").iterdir()):
        folder.rename(folder.with_name(f"my{folder.name}"))
    with pytest.raises(UserError, match=r"kNN needs labels: .* no class in common \(class0, .*both the same names"):
        mocokit.knn(str(run), str(squares))


def test_other_data_than_that_of_the_run(run, tmp_path):
    """Gray digits through an encoder of colour images, and the encoder file without its run."""
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(run / "encoder.safetensors", tmp_path / "alone" / "my encoder.safetensors")
    result = mocokit.knn(str(alone), "digits", limit=100)
    assert result["raw_pixels"]["top1"] > 0.5
    assert [p.name for p in (tmp_path / "alone").iterdir()] == ["my encoder.safetensors"]
    assert not (run / "results" / "knn.json").exists()


def test_an_archive_gives_what_its_folder_gives(tiny_run: TinyRun, run, tmp_path):
    packed = archive(tiny_run.data, tmp_path / "data.zip")
    results = [mocokit.knn(str(run), str(data)) for data in (tiny_run.data, packed)]
    assert all(results[0][who]["top1"] == results[1][who]["top1"] for who in WHO)


def test_table_on_stderr(run, squares, capfd):
    assert main(["knn", str(run), str(squares), "--k", "5"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    lines = stderr.splitlines()[-4:]
    assert [line[:17].rstrip() for line in lines] == ["encoder", "random init", "raw pixels", "colour histogram"]
    assert all(line.count("%") == 4 and "(95 %: " in line and "top-5" not in line for line in lines)  # of four classes
    assert main(["knn", str(run), "digits", "--limit", "50"]) == 0
    lines = capfd.readouterr().err.splitlines()[-4:]
    assert all("  top-5 " in line for line in lines)


def test_the_histogram_of_gray_images_is_called_so(gray, tmp_path, capfd):
    path = tmp_path / "gray.safetensors"
    save_encoder(gray, path, ORIGIN)
    mocokit.knn(str(path), "digits", limit=50)
    assert "gray histogram    top-1 " in capfd.readouterr().err


def test_data_with_another_number_of_channels_is_refused(run, tmp_path):
    import tifffile

    for value, i in ((v, i) for v in "ab" for i in range(3)):
        path = tmp_path / "bands" / value / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        planes = noise(i, channels=5).transpose(2, 0, 1)
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    with pytest.raises(UserError, match="5 channels among images with 3"):
        mocokit.knn(str(run), str(tmp_path / "bands"))
