"""``mocokit select``: training images alone, in a table of their names, and one clear line for what can't be."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import mocokit
from mocokit.cli import main
from mocokit.data.store import open_store
from mocokit.deploy.encoder_file import save_encoder
from mocokit.errors import UserError
from mocokit.evaluation.features import extract
from mocokit.reporting.selection import typiclust
from tests.encoders import ORIGIN, random_encoder
from tests.helpers import encode, noise, write_images
from tests.tiny_runs import TinyRun


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path) -> Path:
    """A copy of the finished run that may be written to."""
    return Path(shutil.copytree(tiny_run.path, tmp_path / "run"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names(result: dict) -> list[str]:
    return [each["image"] for each in result["selected"]]


def test_result(tiny_run: TinyRun, run, capfd):
    result = mocokit.select(str(run), str(tiny_run.data), 12, seed=3)
    store = open_store(str(tiny_run.data), image_size=8, channels=3)
    train = store.splits["train"]
    expected = typiclust(extract(mocokit.load(run), train), 12, seed=3)
    assert names(result) == [train.names[choice.row] for choice in expected]
    rows = table(run / "select.csv")
    assert [list(row.values()) for row in rows] == [
        [train.names[c.row], str(order), str(c.cluster), str(c.cluster_size), str(round(c.typicality, 4))]
        for order, c in enumerate(expected, start=1)
    ]
    assert rows == [{name: str(value) for name, value in each.items()} for each in result["selected"]]
    assert (result["path"], result["candidates"], result["given"]) == (str(run / "select.csv"), 72, 0)
    assert json.loads((run / "results" / "select.json").read_text()) == result
    told = capfd.readouterr().err
    assert all(name in told for name in names(result)[:10])
    assert "and 2 more\n" in told
    assert "12 of 72 images to label first, from 12 clusters" in told


def test_what_is_given_is_not_chosen_again(tiny_run: TinyRun, run, tmp_path, capfd):
    first = mocokit.select(str(run), str(tiny_run.data), 30)
    output = str(tmp_path / "next.csv")
    result = mocokit.select(str(run), str(tiny_run.data), 42, given=first["path"], output=output)
    assert sorted(names(first) + names(result)) == sorted(open_store(str(tiny_run.data), image_size=8).main.names)
    assert (result["given"], result["candidates"]) == (30, 42)
    assert "30 of 72 images are labelled already" in capfd.readouterr().err
    with pytest.raises(UserError, match="--count 43: there are 42 images to choose from"):
        mocokit.select(str(run), str(tiny_run.data), 43, given=first["path"], output=str(tmp_path / "x.csv"))


def test_given_rows_with_an_empty_label_are_not_labelled(tiny_run: TinyRun, run, tmp_path):
    given = tmp_path / "given.csv"
    rows = ["train/class0/000.png,cat", "train\\class1\\000,cat", "train/class2/000.png,", "test/class2/000.png,cat"]
    given.write_text("\n".join(["image,label", *rows]))
    result = mocokit.select(str(run), str(tiny_run.data), 70, given=str(given))
    left = set(open_store(str(tiny_run.data), image_size=8).splits["train"].names) - set(names(result))
    assert left == {"train/class0/000.png", "train/class1/000.png"}


def test_a_class_of_minus_one_is_one_beside_plus_one(tiny_run: TinyRun, run, tmp_path):
    given = tmp_path / "given.csv"
    given.write_text("image,label\ntrain/class0/000.png,-1\ntrain/class1/000.png,1\n")
    assert mocokit.select(str(run), str(tiny_run.data), 3, given=str(given))["given"] == 2
    given.write_text("image,label\ntrain/class0/000.png,-1\ntrain/class1/000.png,0\n")
    assert mocokit.select(str(run), str(tiny_run.data), 3, given=str(given), overwrite=True)["given"] == 1


def test_a_table_in_which_no_label_is_written_yet(tiny_run: TinyRun, run, tmp_path, capfd):
    given = tmp_path / "given.csv"
    given.write_text("image,label\ntrain/class0/000.png,\ntrain/class1/000.png,\n")
    assert mocokit.select(str(run), str(tiny_run.data), 3, given=str(given))["given"] == 0
    assert "given.csv: no image is labelled already" in capfd.readouterr().err


def test_held_out_images_are_not_chosen(tiny_run: TinyRun, run, tmp_path, capfd):
    data = tmp_path / "data"
    write_images(data, [f"{kind}/{number}.png" for kind in "ab" for number in range(10)])
    result = mocokit.select(str(run), str(data), 16)
    assert "4 labelled images are held out for testing (seed 0) and not chosen" in capfd.readouterr().err
    assert {kind: sum(name.startswith(kind) for name in names(result)) for kind in "ab"} == {"a": 8, "b": 8}
    with pytest.raises(UserError, match="there are 10 images to choose from"):
        mocokit.select(str(run), str(data), 11, test_share=0.5, overwrite=True)


def test_images_with_labels_are_mentioned(run, tmp_path, capfd):
    write_images(tmp_path / "data", [f"{number}.png" for number in range(12)])
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label\n" + "".join(f"{number}.png,{'xy'[number % 2]}\n" for number in range(6)))
    options = {"labels": str(labels), "overwrite": True}
    assert mocokit.select(str(run), str(tmp_path / "data"), 3, **options)["candidates"] == 10  # 2 are held out
    assert "4 of 10 images have labels; to choose others only, name their table by --given" in capfd.readouterr().err
    result = mocokit.select(str(run), str(tmp_path / "data"), 6, given=str(labels), **options)
    assert set(names(result)) == {f"{number}.png" for number in range(6, 12)}
    assert "have labels;" not in capfd.readouterr().err


@pytest.mark.parametrize("channels", [1, 3])
def test_three_images_without_labels(tmp_path, channels, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(random_encoder(channels), tmp_path / "encoder.safetensors", ORIGIN)
    write_images(tmp_path / "data", ["a.png", "b.png", "c.png"], channels=channels)
    result = mocokit.select("encoder.safetensors", "data", 3)
    assert sorted(names(result)) == ["a.png", "b.png", "c.png"]
    assert len(table(tmp_path / "select.csv")) == 3  # here, where there is no run directory
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are text")
def test_names_of_any_kind_come_back(run, tmp_path):
    odd = ['a "b", c.png', "d\ne.png", os.fsdecode(b"\xff.png"), "плёнка.png", "<script>.png"]
    (tmp_path / "data").mkdir()
    for number, name in enumerate(odd):
        (tmp_path / "data" / name).write_bytes(encode(noise(number)))
    first = mocokit.select(str(run), str(tmp_path / "data"), 4)
    assert [row["image"] for row in table(run / "select.csv")] == names(first)
    options = {"given": first["path"], "output": str(tmp_path / "next.csv")}
    second = mocokit.select(str(run), str(tmp_path / "data"), 1, **options)
    assert len({*names(first), *names(second)}) == 5


def test_what_is_there_is_kept(tiny_run: TinyRun, run):
    (run / "select.csv").write_text("mine")
    with pytest.raises(UserError, match=r"select.csv: exists; .*--overwrite"):
        mocokit.select(str(run), str(tiny_run.data), 2)
    assert (run / "select.csv").read_text() == "mine"
    assert main(["select", str(run), str(tiny_run.data), "-n", "2", "--overwrite"]) == 0
    assert len(table(run / "select.csv")) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-n", "0"], "--count: 0 is too small; the least is 1"),
        (["-n", "73"], "--count 73: there are 72 images to choose from; give no more"),
        ([], "no --count given: how many images to choose"),
        (["-n", "2", "--given", "absent.csv"], "absent.csv cannot be read as a table of images"),
        (["-n", "2", "--given", "other.csv"], "none of its 1 names is that of an image"),
        (["-n", "2", "--given", "columns.csv"], "columns.csv: its first line names no column of images"),
        (["-n", "2", "-o", "folder"], "--output folder: is a folder; name a file"),
        (["-n", "2", "-o", "other.csv/x.csv"], "--output other.csv: other.csv is no folder"),
    ],
)
def test_what_cannot_be_is_one_line(tiny_run: TinyRun, run, tmp_path, monkeypatch, capfd, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.csv").write_text("image\nnowhere.png\n")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    assert main(["select", str(run), str(tiny_run.data), *arguments]) == 2
    assert told in capfd.readouterr().err.splitlines()[-1]
    assert not (run / "select.csv").exists()


def test_test_images_alone_are_refused(run, tmp_path):
    write_images(tmp_path / "data", ["test/a.png", "test/b.png"])
    with pytest.raises(UserError, match="no images to train on"):
        mocokit.select(str(run), str(tmp_path / "data"), 1)
