"""The result of a verb: complete, and kept in the run directory where there is one."""

import json
import time

import pytest

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


def test_a_result_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "results").write_text("not a directory")
    with pytest.raises(UserError, match="results"):
        record("knn", str(tmp_path), KnnConfig(run="x", data="digits"), {}, time.perf_counter())
