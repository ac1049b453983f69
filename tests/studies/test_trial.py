"""One trial: the ordinary commands, their figures as they are by hand; stopped, it goes on."""

import json

import numpy as np
import pytest
import yaml

import mocokit
from mocokit.studies.trial import RESULT, _by_shots, _schedule, is_done, run
from tests.tiny_runs import TINY

COUNTS = {"class0": 12, "class1": 6, "class2": 3}


@pytest.fixture
def trial(tiny_run, tmp_path):
    recipe = {name: value for name, value in TINY.items() if name not in ("epochs", "device", "report", "workers")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe | {"monitor_every": 0}))
    request = {
        "cell": {"images": 21, "imbalance": 4.0, "seed": 1},
        "counts": COUNTS,
        "labels": ["2", "all"],
        "methods": ["raw-pixels", "random-init", "from-scratch", "moco", "moco-finetuned"],
        "data": str(tiny_run.data),
        "common": {"device": "cpu", "threads": 1},
        "pretraining": {"recipe": str(tmp_path / "tiny.yaml"), "steps": 4, "threads": 1},
        "finetune_steps": 4,
        "weights": None,
    }
    directory = tmp_path / "n21-r4-s1"
    directory.mkdir()

    def ask(**changes: object) -> dict[str, object]:
        (directory / "trial.json").write_text(json.dumps(request | changes))
        return request | changes

    ask()
    return directory, ask


def test_all_methods_and_a_stop_in_between(trial, tiny_run, monkeypatch):
    directory, ask = trial
    tune = mocokit.finetune

    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mocokit, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(directory)
    assert not is_done(directory, ask())
    trained = (directory / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    monkeypatch.setattr(mocokit, "finetune", tune)
    run(directory)
    assert (directory / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained

    result = json.loads((directory / RESULT).read_text())
    found = {(r["method"], r["measure"], r["labels"], r["figure"]): r["accuracy"] for r in result["rows"]}
    assert len(found) == len(result["rows"])
    measured = {key[:3] for key in found}
    frozen = {(m, *of) for m in ("raw-pixels", "random-init", "moco") for of in (("probe", "2"), ("probe", "all"))}
    for_all = {
        (m, of, "all") for m in ("raw-pixels", "random-init", "moco", "from-scratch") for of in ("knn", "probe-all")
    }
    tuned = {(m, "finetune", k) for m in ("from-scratch", "moco-finetuned") for k in ("2", "all")}
    assert measured == frozen | for_all | tuned
    subset = {"limit": 21, "imbalance": 4.0, "seed": 1, "device": "cpu", "threads": 1}
    by_hand = mocokit.probe(str(directory / "run"), str(tiny_run.data), **subset)
    assert found["moco", "probe", "all", "top1"] == by_hand["encoder"]["top1"]
    recalls = {name: row["recall"] for name, row in by_hand["encoder"]["per_class"].items()}
    shots = zip(("many", "medium", "few"), COUNTS, strict=True)
    assert all(found["moco", "probe", "all", shot] == recalls[name] for shot, name in shots)
    for figure in ("few", "balanced", "spread"):
        assert measured == {key[:3] for key in found if key[3] == figure}
    assert by_hand["images"]["train"] + by_hand["images"]["val"] == 21
    everywhere = mocokit.probe(str(directory / "run"), str(tiny_run.data), seed=1, device="cpu", threads=1)
    assert everywhere["images"]["train"] + everywhere["images"]["val"] == 72
    assert found["moco", "probe-all", "all", "top1"] == everywhere["encoder"]["top1"]
    assert json.loads((directory / "run" / "results" / "pretrain.json").read_text())["images"] == 21
    for method, protocol in (("moco-finetuned", "finetune"), ("from-scratch", "from scratch")):
        tuned_by = json.loads((directory / f"{method}-all" / "results" / "finetune.json").read_text())
        assert tuned_by["protocol"] == protocol
        assert tuned_by["images"]["train"] + tuned_by["images"]["val"] == 21
    few = json.loads((directory / "moco-finetuned-2" / "results" / "finetune.json").read_text())
    assert few["images"]["train"] + few["images"]["val"] == 2 * 3
    assert few["images"]["test"] == 48

    before = (directory / RESULT).stat().st_mtime_ns
    run(directory)
    assert (directory / RESULT).stat().st_mtime_ns == before
    assert not is_done(directory, ask(labels=["3"], methods=["moco"]))
    run(directory)
    added = json.loads((directory / RESULT).read_text())
    assert (added["labels"], added["methods"]) == (["2", "all", "3"], result["methods"])
    assert [row for row in added["rows"] if row["labels"] != "3"] == result["rows"]
    assert {row["method"] for row in added["rows"] if row["labels"] == "3"} >= {"moco", "from-scratch"}


def test_given_weights(trial, tiny_run):
    directory, ask = trial
    ask(labels=["all"], methods=["off-the-shelf", "moco-continued"], weights=str(tiny_run.path))
    run(directory)
    rows = json.loads((directory / RESULT).read_text())["rows"]
    assert {row["method"] for row in rows} == {"off-the-shelf", "moco-continued"}
    assert {row["measure"] for row in rows} == {"knn", "probe-all", "probe"}
    by_hand = mocokit.knn(str(tiny_run.path / "encoder.safetensors"), str(tiny_run.data), device="cpu", threads=1)
    found = [r for r in rows if (r["method"], r["measure"], r["figure"]) == ("off-the-shelf", "knn", "top1")]
    assert found[0]["accuracy"] == by_hand["encoder"]["top1"]


@pytest.mark.parametrize("images", [2, 6, 30, 1000, 50_000])
def test_steps_are_about_equal_whatever_the_size(images):
    options = _schedule(images, 1000)
    per_epoch = max(1, round(0.8 * images) // options["batch_size"])
    assert abs(options["epochs"] * per_epoch - 1000) <= per_epoch / 2


def test_terciles_and_spread():
    counts = {name: 100 - 10 * n for n, name in enumerate("abcdef")}
    recalls = dict(zip("fedcba", (0.1, 0.3, 0.5, 0.7, 0.9, 1.0), strict=True))
    per_class = {name: {"recall": recall} for name, recall in recalls.items()} | {"unseen": {"recall": None}}
    shots = _by_shots(per_class, counts)
    assert shots == pytest.approx(
        {"many": 0.95, "medium": 0.6, "few": 0.2, "spread": np.std([*recalls.values()], ddof=1)}
    )
    assert set(_by_shots(per_class, dict.fromkeys("abcdef", 9))) == {"spread"}
    assert _by_shots(None, counts) == {}


def test_moco_is_added_to_what_was_measured_without(trial):
    directory, ask = trial

    def measured(*methods: str) -> dict[tuple[str, ...], float]:
        ask(labels=["all"], methods=list(methods))
        run(directory)
        rows = json.loads((directory / RESULT).read_text())["rows"]
        return {(r["method"], r["measure"], r["figure"]): r["accuracy"] for r in rows}

    before = measured("random-init", "from-scratch")
    after = measured("random-init", "from-scratch", "moco")
    assert {method for method, _, _ in after} == {"random-init", "from-scratch", "moco"}
    assert before == {key: value for key, value in after.items() if key[0] != "moco"}
