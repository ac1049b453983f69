"""The result of a verb: complete, and kept in the run directory where there is one."""

import errno
import json
import shutil
import time

import pytest

import mocokit
from mocokit.cli import main
from mocokit.commands.results import record
from mocokit.config import KnnConfig
from mocokit.errors import UserError
from mocokit.machine import versions


def test_a_result_is_kept_in_the_run_directory(tmp_path):
    config = KnnConfig(run=str(tmp_path), data="digits")
    result = record("knn", str(tmp_path), config, {"top1": 0.5}, time.perf_counter(), "abc")
    assert list(result) == ["top1", "wall_s", "config", "data_fingerprint", "versions"]
    assert (result["config"]["data"], result["data_fingerprint"]) == ("digits", "abc")
    assert result["versions"] == versions()
    assert json.loads((tmp_path / "results" / "knn.json").read_text()) == result


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
