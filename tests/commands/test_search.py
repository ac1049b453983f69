"""``mocokit search``: the right neighbours by name, of rows and of files, and one clear line for what can't be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mocokit
import mocokit.deploy.nearest as module
from mocokit.cli import main
from mocokit.deploy.encoder_file import read_header, save_encoder
from mocokit.errors import UserError
from tests.helpers import encode, noise
from tests.tiny_runs import TinyRun


@pytest.fixture(scope="module")
def embedded(tiny_run: TinyRun, tmp_path_factory) -> Path:
    """A folder with a copy of the run, its data, and its features in three formats."""
    folder = tmp_path_factory.mktemp("embedded")
    shutil.copytree(tiny_run.path, folder / "run")
    shutil.copytree(tiny_run.data, folder / "data")
    copied = folder / "data" / "test" / "class0" / "copy.png"  # of an image in train
    shutil.copy(folder / "data" / "train" / "class1" / "005.png", copied)
    for suffix in (".parquet", ".npz", ".npy"):
        mocokit.embed(str(folder / "run"), str(folder / "data"), str(folder / f"f{suffix}"))
    return folder


@pytest.fixture
def place(embedded, tmp_path) -> Path:
    """A copy whose features still name the run and data of the original."""
    return Path(shutil.copytree(embedded, tmp_path / "copy"))


def paths(embedded: Path) -> list[str]:
    data = embedded / "data"
    return sorted(file.relative_to(data).as_posix() for file in data.rglob("*.png"))


def nearest(embedded: Path, row: int, k: int) -> list[int]:
    x = np.load(embedded / "f.npy").astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    order = np.lexsort((np.arange(len(x)), -(x @ x[row]).round(6)))
    return [int(i) for i in order if i != row][:k]


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
def test_neighbours_of_a_row(embedded, suffix):
    result = mocokit.search(str(embedded / f"f{suffix}"), [3, "70"], k=5)
    names = paths(embedded)
    for query, row in zip(result["queries"], (3, 70), strict=True):
        assert (query["query"], query["row"]) == (str(row), row)
        assert (query["path"], query["label"]) == (names[row], Path(names[row]).parent.name)
        expected = nearest(embedded, row, 5)
        assert [n["row"] for n in query["neighbours"]] == expected
        assert [n["path"] for n in query["neighbours"]] == [names[i] for i in expected]
        assert [n["label"] for n in query["neighbours"]] == [Path(names[i]).parent.name for i in expected]
    written = json.loads((embedded / "run" / "results" / "search.json").read_text())
    assert written == json.loads(json.dumps(result))


def test_an_image_file_finds_itself_and_its_copy(embedded):
    file = embedded / "data" / "train" / "class1" / "005.png"
    result = mocokit.search(str(embedded / "f.parquet"), str(file), k=3)
    (query,) = result["queries"]
    assert (query["row"], query["path"], query["label"]) == (None, None, None)
    first, second, third = query["neighbours"]
    assert {first["path"], second["path"]} == {"test/class0/copy.png", "train/class1/005.png"}
    assert first["similarity"] == second["similarity"] == pytest.approx(1, abs=2e-6)
    assert third["similarity"] < 1


def test_duplicates(embedded, capfd):
    result = mocokit.search(str(embedded / "f.npz"), duplicates=1.0)
    names = paths(embedded)
    rows = [names.index("test/class0/copy.png"), names.index("train/class1/005.png")]
    pair = {"rows": rows, "paths": [names[row] for row in rows], "similarity": 1.0}
    assert (result["duplicates"], result["duplicate_pairs"], result["queries"]) == ([pair], 1, [])
    assert (result["duplicates_from"], result["duplicate_groups"]) == (1.0, [rows])
    assert "1 pair of near-duplicates in 1 group, the largest of 2 images" in capfd.readouterr().err


def test_duplicates_by_a_cosine_of_the_data(embedded, capfd):
    result = mocokit.search(str(embedded / "f.npz"), duplicates="auto")
    assert [0.9 < result["duplicates_from"] <= 1, result["duplicate_pairs"]] == [True, len(result["duplicates"])]
    assert {"test/class0/copy.png", "train/class1/005.png"} in [set(p["paths"]) for p in result["duplicates"]]
    assert "5 times nearer" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", ["2", "often", "nan"])
def test_wrong_duplicates_are_one_line(embedded, wrong):
    with pytest.raises(UserError, match=rf"^--duplicates {wrong}: give auto, or a cosine from -1 to 1$"):
        mocokit.search(str(embedded / "f.npz"), duplicates=wrong)


def test_more_duplicates_than_are_listed(embedded, monkeypatch, capfd):
    monkeypatch.setattr(module, "MAX_PAIRS", 30)
    result = mocokit.search(str(embedded / "f.npz"), duplicates=-1.0)
    count = len(paths(embedded))
    assert (len(result["duplicates"]), result["duplicate_pairs"]) == (30, count * (count - 1) // 2)
    assert "the 30 most similar are listed" in capfd.readouterr().err


def test_table_and_json(embedded, capfd):
    assert main(["search", str(embedded / "f.parquet"), "3", "--k", "2", "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    (query,) = json.loads(stdout)["queries"]
    for neighbour in query["neighbours"]:
        assert f"{neighbour['similarity']:.6f}" in stderr
        assert neighbour["path"] in stderr
    assert main(["search", str(embedded / "f.parquet"), "3", "--k", "2"]) == 0
    assert capfd.readouterr().out == ""


def test_k_of_more_than_there_are(embedded, capfd):
    count = len(paths(embedded))
    (query,) = mocokit.search(str(embedded / "f.npy"), 0, k=10_000)["queries"]
    assert sorted(n["row"] for n in query["neighbours"]) == list(range(1, count))
    assert f"no more than {count} rows" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
def test_float16(embedded, tmp_path, suffix):
    output = tmp_path / f"half{suffix}"
    mocokit.embed(str(embedded / "run"), str(embedded / "data"), str(output), dtype="float16")
    (half,) = mocokit.search(str(output), 3, k=4)["queries"]
    (full,) = mocokit.search(str(embedded / "f.npy"), 3, k=4)["queries"]
    similarities = [[n["similarity"] for n in query["neighbours"]] for query in (half, full)]
    assert similarities[0] == pytest.approx(similarities[1], abs=1e-3)


def test_a_bare_matrix(tmp_path, embedded):
    matrix = np.random.default_rng(0).normal(size=(20, 3))
    matrix[7] = 3 * matrix[2]
    np.save(tmp_path / "m.npy", matrix)
    result = mocokit.search(str(tmp_path / "m.npy"), 2, k=1, duplicates=0.999999)
    neighbour = {"row": 7, "path": None, "label": None, "similarity": 1.0}
    assert result["queries"][0]["neighbours"] == [neighbour]
    assert [2, 7] in [pair["rows"] for pair in result["duplicates"]]
    image = str(embedded / "data" / "train" / "class1" / "005.png")
    with pytest.raises(UserError, match=r"does not say which encoder.*--run"):
        mocokit.search(str(tmp_path / "m.npy"), image)
    with pytest.raises(UserError, match="not the encoder"):  # another dimension
        mocokit.search(str(tmp_path / "m.npy"), image, run=str(embedded / "run"))
    with pytest.raises(UserError, match="does not say which images"):
        mocokit.search(str(tmp_path / "m.npy"), 2, montage=str(tmp_path / "m.png"))


# Runs and data that have moved ------------------------------------------------------------------------------


def test_another_encoder_is_refused(place):
    encoder = mocokit.load(place / "run")
    encoder.backbone.bn1.bias.data += 0.1
    save_encoder(encoder, place / "run" / "encoder.safetensors", read_header(place / "run")[1])
    image = str(place / "data" / "train" / "class1" / "005.png")
    with pytest.raises(UserError, match="not the encoder that made"):
        mocokit.search(str(place / "f.npz"), image, run=str(place / "run"))
    assert mocokit.search(str(place / "f.npz"), image)["rows"]  # by the one it names


def moved(features: Path, name: str) -> None:
    """Let the metadata of an .npy name a place that is gone."""
    sidecar = features.with_name("f.npy.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {name: "/gone"}))


def test_a_run_that_has_moved(place):
    moved(place / "f.npy", "run")
    image = str(place / "data" / "train" / "class1" / "005.png")
    with pytest.raises(UserError, match=r"/gone, whose encoder made .*--run"):
        mocokit.search(str(place / "f.npy"), image)
    result = mocokit.search(str(place / "f.npy"), image, run=str(place / "run"))
    assert result["queries"][0]["neighbours"][0]["similarity"] == pytest.approx(1, abs=2e-6)
    assert mocokit.search(str(place / "f.npy"), 3)["queries"]  # a row needs no encoder


def test_data_that_have_moved(place):
    moved(place / "f.npy", "data")
    options = {"k": 2, "montage": str(place / "m.png")}
    with pytest.raises(UserError, match=r"f.npy was made of /gone, which is not there; name the images: --data DATA"):
        mocokit.search(str(place / "f.npy"), 3, **options)
    with pytest.raises(UserError, match="no such data: /elsewhere; accepted"):
        mocokit.search(str(place / "f.npy"), 3, data="/elsewhere", **options)
    mocokit.search(str(place / "f.npy"), 3, data=str(place / "data"), **options)
    for file in (place / "data" / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"no image test/class0/00\d\.png in .*--data"):
        mocokit.search(str(place / "f.npy"), 3, data=str(place / "data"), overwrite=True, **options)


# The montage ----------------------------------------------------------------------------------------------


def test_montage_shows_the_images(place, capfd):
    query = place / "data" / "train" / "class0" / "001.png"
    target = place / "m.png"
    result = mocokit.search(str(place / "f.parquet"), [3, str(query)], k=2, duplicates=1.0, montage=str(target))
    assert "2 queries and 1 pair of near-duplicates drawn" in capfd.readouterr().err
    picture = np.asarray(Image.open(target).convert("RGB"))
    first = result["queries"][0]
    shown = [first["path"], *(n["path"] for n in first["neighbours"])]
    for column, path in enumerate(shown):
        original = np.asarray(Image.open(place / "data" / path).convert("RGB"))  # 12 x 10
        # Each pixel is a square of 112 / 12; the middles of squares must be the pixels.
        left = 16 + 4 + column * 130 + (16 if column else 0) + (112 - 93) // 2
        for y, x in ((0, 0), (5, 3), (11, 9)):
            got = picture[20 + int((y + 0.5) * 112 / 12), left + int((x + 0.5) * 9.3)]
            assert np.array_equal(got, original[y, x]), path
    assert picture.shape[0] > 3 * 112


def test_a_montage_that_exists_is_kept(place):
    target = place / "m.png"
    target.write_text("mine")
    with pytest.raises(UserError, match=r"exists; .*--overwrite"):
        mocokit.search(str(place / "f.npy"), 3, montage=str(target))
    assert target.read_text() == "mine"
    mocokit.search(str(place / "f.npy"), 3, montage=str(target), overwrite=True)
    assert Image.open(target).format == "PNG"


@pytest.mark.parametrize("name", ["m.jpg", "folder.png", "file/m.png"])
def test_montages_that_cannot_be(place, name):
    (place / "folder.png").mkdir()
    (place / "file").write_text("")
    with pytest.raises(UserError, match="--montage"):
        mocokit.search(str(place / "f.npy"), 3, montage=str(place / name))


def test_nothing_to_draw(place, capfd):
    (place / "data" / "test" / "class0" / "copy.png").write_bytes(encode(noise(7)))
    mocokit.embed(str(place / "run"), str(place / "data"), str(place / "f.npy"), overwrite=True)
    mocokit.search(str(place / "f.npy"), duplicates=1.0, montage=str(place / "m.png"))
    assert "nothing to draw" in capfd.readouterr().err
    assert not (place / "m.png").exists()


# Wrong input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "match"),
    [
        ([], "no queries"),
        (["999"], "row 999: .* has rows 0 to"),
        (["no such.png"], "query no such.png: no such file"),
        (["-1"], "query -1: no such file"),
        (["{folder}/f.npy"], "not an image"),
    ],
)
def test_wrong_queries(embedded, queries, match):
    queries = [query.format(folder=embedded) for query in queries]
    with pytest.raises(UserError, match=match):
        mocokit.search(str(embedded / "f.npy"), queries)


def test_damaged_features_are_one_line(place, capfd):
    for suffix in (".parquet", ".npz", ".npy"):
        path = place / f"f{suffix}"
        path.write_bytes(path.read_bytes()[:300])
        assert main(["search", str(path), "3"]) == 2
        stderr = capfd.readouterr().err
        assert str(path) in stderr
        assert stderr.count("\n") == 1


def test_foreign_metadata_write_nowhere(place):
    """A file from elsewhere may name any folder as its run."""
    (place / "mine").mkdir()
    sidecar = place / "f.npy.json"
    for run in (str(place / "mine"), 7, ["x"], None):
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"run": run}))
        assert mocokit.search(str(place / "f.npy"), 3)["queries"]
        with pytest.raises(UserError, match=r"--run|no encoder here"):
            mocokit.search(str(place / "f.npy"), str(place / "data" / "train" / "class1" / "005.png"))
    assert not list((place / "mine").iterdir())
