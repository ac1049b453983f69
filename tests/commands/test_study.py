"""A whole study on tiny trials: what it leaves, what is added, what is refused."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

import mocokit
from mocokit.commands import study as command
from mocokit.errors import UserError
from mocokit.studies import engine, trial
from tests.helpers import write_images
from tests.tiny_runs import TINY

GRID = {"sizes": "21", "imbalance": "1,4", "methods": "moco", "steps": 3, "device": "cpu"}


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "tiny.yaml"
    options = {name: value for name, value in TINY.items() if name not in ("epochs", "device", "report", "workers")}
    path.write_text(yaml.safe_dump(options | {"monitor_every": 0}))
    return str(path)


@pytest.fixture
def in_process(monkeypatch):
    """Trials in this process, one after the other; those whose names are added to the list fail."""
    broken: list[str] = []

    def attempt(module: str, directory: str, threads: int, folder: str) -> str | None:
        if Path(directory).name in broken:
            return "out of luck"
        trial.run(Path(directory))
        return None

    for module in (engine, command):
        monkeypatch.setattr(module, "has_ray", lambda: False)
    monkeypatch.setattr(engine, "attempt", attempt)
    return broken


def figures(out: Path) -> pd.DataFrame:
    """What does not depend on the clock."""
    return (
        pd.read_csv(out / "trials.csv")
        .drop(columns="seconds")
        .sort_values(["trial", "measure", "figure"], ignore_index=True)
    )


def test_one_trial_is_told_as_one(monkeypatch, capfd):
    monkeypatch.setattr(command, "parallel", lambda resources: 1)
    plan = SimpleNamespace(lines=list)
    command._announce(Path("out"), plan, [Path("n1")], 60.0, SimpleNamespace(ray_address=None))
    assert capfd.readouterr().err.startswith("out: 1 trial to do, about 1.0 min each")


def test_a_study_and_what_is_added(tiny_run, tmp_path, recipe, in_process, capfd):
    out = tmp_path / "study"
    options = GRID | {"out": str(out), "recipe": recipe}
    in_process.append("n21-r4-s0")
    result = mocokit.study(str(tiny_run.data), **options, seeds=1)
    assert result["trials"] == {"done": 1, "failed": {"n21-r4-s0": "out of luck"}}
    assert "- n21-r4-s0 failed twice and is left out: out of luck\n" in (out / "answer.md").read_text()
    told = capfd.readouterr().err
    assert f"{out}: 2 trials to do, about " in told
    assert "1 of 2 trials done, 0 running, 1 failed, about 0.0 min left" in told
    first = figures(out)
    assert set(first.trial) == {"n21-r1-s0"}

    in_process.clear()
    result = mocokit.study(str(tiny_run.data), **options, seeds=2)
    assert result["trials"] == {"done": 4, "failed": {}}
    assert f"{out}: 3 trials to do" in capfd.readouterr().err
    every = figures(out)
    pd.testing.assert_frame_equal(every[every.trial == "n21-r1-s0"].reset_index(drop=True), first)
    plan = yaml.safe_load((out / "study.yaml").read_text())
    assert set(plan["trials"]) == set(every.trial)
    assert plan["options"]["steps"] == 3
    summary = pd.read_csv(out / "summary.csv")
    assert set(summary.n) == {2}
    assert {"mean", "relative gap"} == set(summary.statistic)
    assert {path.name for path in out.iterdir()} >= {"study.png", "study.svg", "labels.csv"}

    moved = tmp_path / "moved"  # the plan and the results are enough to go on elsewhere
    for path in (out / "study.yaml", *out.glob("trials/*/result.json")):
        (moved / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / path.relative_to(out))
    in_process.extend(plan["trials"])  # none is done again
    assert mocokit.study(str(tiny_run.data), **options | {"out": str(moved)}, seeds=2)["trials"] == result["trials"]
    pd.testing.assert_frame_equal(figures(moved), every)

    with pytest.raises(UserError, match="holds a study with --steps 3; give the same, or another --out"):
        mocokit.study(str(tiny_run.data), **options | {"steps": 4})
    with pytest.raises(UserError, match="holds a study of other images or labels"):
        mocokit.study("digits", **options)


def test_test_images_are_in_no_subset(tmp_path, recipe, in_process):
    """They are held out once for all trials, where the data has none."""
    data = write_images(tmp_path / "data", [f"{c}/{n}.png" for c in "ab" for n in range(30)], height=12, width=12)
    out = tmp_path / "study"
    mocokit.study(str(data), out=str(out), **GRID | {"sizes": "20", "imbalance": "1"}, recipe=recipe, seeds=2)
    table = pd.read_csv(out / "labels.csv")
    assert table.groupby(["label", "split"]).size().to_dict() == {
        ("a", "test"): 6, ("a", "train"): 24, ("b", "test"): 6, ("b", "train"): 24,
    }  # fmt: skip
    for seed in (0, 1):
        run = out / "trials" / f"n20-r1-s{seed}" / "run"
        result = json.loads((run / "results" / "probe.json").read_text())
        assert (result["images"], result["test"]["held_out"]) == ({"train": 16, "val": 4, "test": 12}, None)


def test_a_study_killed_among_its_requests_goes_on(tiny_run, tmp_path, recipe, in_process, monkeypatch):
    options = GRID | {"out": str(tmp_path / "study"), "recipe": recipe, "seeds": 1, "imbalance": "1"}
    with monkeypatch.context() as patched:
        patched.setattr(command, "_write_requests", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mocokit.study(str(tiny_run.data), **options)
    (tmp_path / "study" / "trials" / "n21-r1-s0").mkdir(parents=True)  # the first of them is there
    assert mocokit.study(str(tiny_run.data), **options)["trials"] == {"done": 1, "failed": {}}


def test_what_is_refused_writes_nothing(tiny_run, tmp_path, in_process):
    with pytest.raises(UserError, match="a study needs labels: there are no labels"):
        mocokit.study(str(write_images(tmp_path / "flat", [f"{n}.png" for n in range(9)])), out=str(tmp_path / "s"))
    with pytest.raises(UserError, match="--time-budget and --steps exclude each other"):
        mocokit.study(str(tiny_run.data), steps=1, time_budget="1m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and holds no study"):
        mocokit.study(str(tiny_run.data), out=str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_told_by_its_reason(tiny_run, tmp_path, monkeypatch):
    out = tmp_path / "study"
    mkdir = Path.mkdir

    def refuse(self, *arguments, **options):
        if self == out:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=f"^{out}: Read-only file system; "):
        mocokit.study(str(tiny_run.data), out=str(out), **GRID)


@pytest.mark.slow
def test_ray_and_one_after_the_other_agree_bit_for_bit(tiny_run, tmp_path, recipe, in_process, monkeypatch):
    pytest.importorskip("ray")
    options = GRID | {"recipe": recipe, "seeds": 2}
    mocokit.study(str(tiny_run.data), out=str(tmp_path / "one"), **options)
    monkeypatch.undo()
    monkeypatch.setattr(engine, "usable_cores", lambda: 2)
    result = mocokit.study(str(tiny_run.data), out=str(tmp_path / "ray"), **options)
    assert result["trials"] == {"done": 4, "failed": {}}
    pd.testing.assert_frame_equal(figures(tmp_path / "ray"), figures(tmp_path / "one"), check_exact=True)


def test_a_study_of_tiles_keeps_those_of_an_image_together(tmp_path, recipe, in_process):
    names = [f"{kind}/{number}.png" for kind in "ab" for number in range(6)]
    data = write_images(tmp_path / "data", names, 34, 34)
    out = tmp_path / "study"
    options = GRID | {"out": str(out), "recipe": recipe, "sizes": "24", "imbalance": "1", "methods": "raw-pixels"}
    result = mocokit.study(str(data), tiles=16, seeds=1, **options)
    assert result["trials"] == {"done": 1, "failed": {}}
    table = pd.read_csv(out / "labels.csv")
    assert len(table) == 4 * len(names)
    assert (table.groupby(table["image"].str.partition("#")[0])["split"].nunique() == 1).all()
    assert json.loads((out / "trials" / "n24-r1-s0" / "trial.json").read_text())["common"]["tiles"] == 16
