"""The result of a verb: complete, and kept in the run directory where there is one."""

import errno
import json
import shlex
import shutil
import time
from dataclasses import asdict

import pytest

import mocokit
from mocokit.cli import main
from mocokit.commands.results import DECIDED, next_command, record
from mocokit.config import VERBS, KnnConfig, deciding
from mocokit.errors import UserError
from mocokit.machine import versions
from mocokit.options import fields_of
from mocokit.rundir import RunDirectory
from tests.tiny_runs import TINY, coloured_data, flags_of


def test_a_result_is_kept_in_the_run_directory(tmp_path):
    config = KnnConfig(run=str(tmp_path), data="digits")
    result = record("knn", str(tmp_path), config, {"top1": 0.5}, time.perf_counter(), "abc")
    assert list(result) == ["top1", "wall_s", "config", "data_fingerprint", "versions"]
    assert (result["config"]["data"], result["data_fingerprint"]) == ("digits", "abc")
    assert result["versions"] == versions()
    assert json.loads((tmp_path / "results" / "knn.json").read_text()) == result


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, "-o f.npz"),
        ({"follow_links": True}, "--follow-links -o f.npz"),
        ({"max_skipped": 0.5, "max_pixels": 9, "follow_links": False}, "--max-skipped 0.5 --max-pixels 9 -o f.npz"),
    ],
)
def test_the_next_command_reads_the_same_images(given, flags):
    config = asdict(KnnConfig(run="x", data="digits")) | given
    assert next_command("embed", "runs/x", "my data", config, "-o f.npz") == f"mocokit embed runs/x 'my data' {flags}"


def test_the_next_command_measures_on_the_same_images():
    given = {"labels": "my table.csv", "test_share": 0.4, "split_by": "patient", "seed": 3, "limit": 90, "train": "mon"}
    config = asdict(KnnConfig(run="x", data="digits")) | given
    flags = "--limit 90 --labels 'my table.csv' --train mon --test-share 0.4 --split-by patient --seed 3"
    assert next_command("knn", "runs/x", "d", config) == f"mocokit knn runs/x d {flags}"
    embed = "mocokit embed runs/x d --labels 'my table.csv' --train mon -o f.npz"
    assert next_command("embed", "runs/x", "d", config, "-o f.npz") == embed
    for verb, decisions in DECIDED.items():
        assert {*deciding(*decisions)} <= {*fields_of(VERBS[verb])}


def test_what_pretrain_and_finetune_say_is_next_works_on_a_folder_of_links(tmp_path, monkeypatch, capfd):
    images = coloured_data(tmp_path / "images", classes=2, train=12, test=6)
    (tmp_path / "links" / "train").mkdir(parents=True)
    (tmp_path / "links" / "test").symlink_to(images / "test")
    for folder in (images / "train").iterdir():
        (tmp_path / "links" / "train" / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    commands = ["mocokit pretrain links --out run --follow-links " + " ".join(flags_of(TINY | {"epochs": 1}))]
    commands.append("mocokit finetune run links --follow-links --epochs 1 --no-baseline")
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
        told = capfd.readouterr().err
        assert "links: 24 train, 12 test images" in told
        following = told.partition("next: ")[2].splitlines()[0]
        assert following.startswith("mocokit ")
        assert main(shlex.split(following)[1:]) == 0
    assert (tmp_path / "features.parquet").exists()
    assert main(shlex.split(following.replace("--follow-links ", ""))[1:]) == 2
    assert "leads out of the folder; --follow-links reads what it leads to" in capfd.readouterr().err


@pytest.mark.parametrize("run", [None, "encoder.safetensors"])
def test_nothing_is_written_without_a_run_directory(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    record("knn", run, KnnConfig(run="x", data="digits"), {}, time.perf_counter())
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_cannot_be_written_is_told_once_and_returned(tmp_path, capfd):
    (tmp_path / "results").write_text("not a directory")
    config = KnnConfig(run="x", data="digits")
    result = record("knn", str(tmp_path), config, {"top1": 0.5}, time.perf_counter(), "abc", "knn_again")
    assert result["top1"] == 0.5
    told = capfd.readouterr().err
    assert told.startswith(f"{tmp_path / 'results' / 'knn.json'}: can't be written (")
    assert told.count("\n") == 1


def test_a_run_is_not_complete_without_its_result(tmp_path):
    (tmp_path / "results").write_text("not a directory")
    with pytest.raises(UserError, match="results"):
        record("knn", str(tmp_path), KnnConfig(run="x", data="digits"), {}, time.perf_counter(), must_keep=True)


@pytest.mark.parametrize(
    "verb",
    ["knn", "probe", "scorecard", ["probe", "--protocol=sgd", "--epochs=1"], ["embed", "-o", "features.npz"]],
    ids=str,
)
def test_verbs_that_only_read_take_a_run_that_cannot_be_written(tiny_run, tmp_path, capfd, monkeypatch, verb):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    shutil.rmtree(run / "results")
    (run / "results").touch()
    monkeypatch.chdir(tmp_path)
    words = [verb] if isinstance(verb, str) else verb
    assert main([words[0], str(run), str(tiny_run.data), *words[1:], "--device=cpu", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["data_fingerprint"]
    assert err.count("can't be written") == 1


def test_a_probe_by_sgd_on_a_directory_that_takes_no_files_trains_without_rows(tiny_run, tmp_path, capfd, monkeypatch):
    """As root everything can be written, so that the refusal is made here."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("mocokit.commands.probe.tempfile.TemporaryFile", refuse)
    assert mocokit.probe(str(run), str(tiny_run.data), protocol="sgd", epochs=1, device="cpu")["encoder"]
    assert f"{run}: can't be written (Permission denied), so there are no rows" in capfd.readouterr().err
    assert not (run / "probe-sgd.csv").exists()


def test_a_run_below_the_home_directory_is_the_same_run(tiny_run, tmp_path, monkeypatch):
    """``~`` as Python gets it: what a verb reads of the run and leaves in it, and where its own run lies."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run, data = "~/run", str(tiny_run.data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    results = RunDirectory(tmp_path / "run").result
    options = {"knn": {"k": 5}, "probe": {}, "scorecard": {"images": 16}, "export": {"format": "timm"}}
    for verb in options:
        result = getattr(mocokit, verb)(*([run] if verb == "export" else [run, data]), **options[verb])
        assert json.loads(results(verb).read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "run" / "export" / "timm").is_dir()
    scores = json.loads(results("scorecard").read_text())["scorecard"]  # by the run's own views
    assert scores == mocokit.scorecard(str(tmp_path / "run"), data, images=16)["scorecard"]
    mocokit.finetune(run, data, out="~/tuned", epochs=1)
    assert (tmp_path / "tuned" / "from-scratch" / "encoder.safetensors").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
