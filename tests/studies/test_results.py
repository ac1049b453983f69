"""Tables and the answer of a study, from made results; read by pandas alone."""

import math

import pandas as pd
import pytest

from mocokit.studies.results import answers, by_setting, compare, read_rows, write_answer, write_tables
from tests.studies.made import made_trials


@pytest.fixture
def rows(tmp_path):
    return read_rows([*made_trials(tmp_path / "trials"), tmp_path / "not done"])


def test_tables(rows, tmp_path):
    write_tables(tmp_path, rows, compare(by_setting(rows)))
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert len(trials) == len(rows) == 2 * 3 * 6
    assert trials.columns.tolist() == [
        *("trial", "images", "imbalance", "seed", "method", "measure", "labels", "figure", "accuracy", "seconds"),
        *("machine", "versions"),
    ]
    assert set(trials.machine) == {"here, there"}
    summary = pd.read_csv(tmp_path / "summary.csv").set_index(["imbalance", "method", "measure", "labels", "statistic"])
    mean = summary.loc[(1, "from-scratch", "finetune", "10", "mean")]
    assert (mean["mean"], mean["n"]) == (pytest.approx(0.41), 3)
    assert mean["half_width"] == pytest.approx(4.302652729911275 * 0.01 / math.sqrt(3))
    difference = summary.loc[(10, "moco-finetuned", "finetune", "10", "minus from-scratch")]
    assert (difference["mean"], difference["n"]) == (pytest.approx(0.11), 3)
    gaps = summary[summary.index.get_level_values("statistic") == "relative gap"]
    assert len(gaps) == 2
    by_hand = [0.05 / 0.50, 0.05 / 0.51, 0.05 / 0.52]
    assert gaps.loc[(10, "moco", "probe-all", "all", "relative gap"), "mean"] == pytest.approx(sum(by_hand) / 3)


def test_one_seed_has_no_interval(tmp_path):
    rows = read_rows(made_trials(tmp_path / "trials", seeds=1))
    write_tables(tmp_path, rows, compare(by_setting(rows)))
    assert pd.read_csv(tmp_path / "summary.csv")["half_width"].isna().all()
    assert "only seed" in answers(by_setting(rows), classes=2)[0]


def test_the_answer(rows, tmp_path):
    figures = by_setting(rows)
    sentences = answers(figures, classes=2)
    start = "With 100 images, balanced classes and "
    assert sentences[0] == (
        "MoCo gains over training from scratch in 2 of 4 settings, loses in 2; in 0 this study could see no difference."
    )
    assert sentences[1] == f"{start}10 labels a class, MoCo gains 11.0 ± 2.5 points over training from scratch (n = 3)."
    assert sentences[2] == f"{start}all labels, MoCo loses 11.0 ± 2.5 points against training from scratch (n = 3)."
    # From 0.41 at 10 labels a class to 0.81 at 50, MoCo's 0.52 is reached at 10 * 5 ** (0.11 / 0.4).
    needed = round(10 * 5 ** (0.11 / 0.4))
    text = f"for what it gets with 10 labels a class, training from scratch needs about {needed}."
    assert sentences[5] == f"With 100 images, balanced classes, {text}"
    assert sentences[-1].startswith("Δ(100, 10) of the features by moco: 9.8 ± ")
    write_answer(tmp_path, "When?", sentences, compare(figures), ["n1 failed twice and is left out: luck"])
    answer = (tmp_path / "answer.md").read_text()
    assert all(f"- {line}\n" in answer for line in sentences)
    assert "- n1 failed twice and is left out: luck\n" in answer
    assert "| 100 | 1 | 10 | finetune | from-scratch | 41.0 ± 2.5 | 3 |\n" in answer


def test_whether_more_images_and_features_of_ones_own_help(tmp_path):
    figures = by_setting(read_rows([p for n in (50, 100) for p in made_trials(tmp_path / "trials", images=n)]))
    for key in [key for key in figures if key.images == 50]:  # 3 points, more or less, by which more images are better
        figures[key] = {seed: value - 0.02 - 0.01 * seed for seed, value in figures[key].items()}
    probe = next(iter(figures))._replace(images=100, imbalance=1.0, measure="probe", labels="all", figure="top1")
    figures[probe._replace(method="moco")] = {0: 0.5, 1: 0.602}
    figures[probe._replace(method="raw-pixels")] = {0: 0.4, 1: 0.5}
    said = answers(figures, classes=2)[-3:]
    gains = "MoCo with 100 images gains 3.0 ± 2.5 points over MoCo with 50 (n = 3)."
    assert said[1:] == [f"With balanced classes and all labels, {gains}", f"With r = 10 and all labels, {gains}"]
    assert said[0].startswith(
        "With 100 images, balanced classes and all labels, a probe says: MoCo, frozen, gains 10.1"
    )


def test_a_gain_is_told_beside_the_probe_of_random_weights(rows):
    figures = by_setting(rows)
    key = next(key for key in figures if key.method == "moco-finetuned")._replace(images=100, imbalance=1.0)
    tuned = figures[key._replace(measure="finetune", labels="10", figure="top1")]
    probe = key._replace(method="random-init", measure="probe", labels="10", figure="top1")
    figures[probe] = {seed: value + 0.002 for seed, value in tuned.items()}
    said = answers(figures, classes=2)
    assert said[1].startswith(
        "With 100 images, balanced classes and 10 labels a class, MoCo gains 11.0 ± 2.5 points over training from "
        "scratch (n = 3), but is not clearly above a linear probe of random initialisation (-0.2 points, n = 3):"
    )
    assert sum("not clearly above" in line for line in said) == 1


def test_what_going_on_from_weights_gains(rows):
    key = next(iter(by_setting(rows)))._replace(images=100, imbalance=1.0, measure="probe", labels="all", figure="top1")
    figures = {key._replace(method="moco-continued"): {0: 0.5, 1: 0.602}}
    figures |= {key._replace(method=method): {0: 0.4, 1: 0.5} for method in ("off-the-shelf", "raw-pixels")}
    assert answers(figures, classes=2) == [
        "With 100 images, balanced classes and all labels, a probe says: MoCo continued from the weights gains 10.1 ± "
        "1.3 points over off-the-shelf features (n = 2)."
    ]


def test_equal_counts_of_few_seeds_have_no_spread(rows, tmp_path):
    """Two seeds that both gain 4 of 48 test images say nothing on how sure that is."""
    key = next(iter(by_setting(rows)))._replace(measure="probe", labels="all", figure="top1")
    figures = {key._replace(method="moco"): {0: 29 / 48, 1: 33 / 48}}
    figures |= {key._replace(method="random-init"): {0: 25 / 48, 1: 29 / 48}}
    figures |= {key._replace(method="raw-pixels"): {0: 25 / 48, 1: 25 / 48}}
    sentences = answers(figures, classes=2)
    assert [" is the same +8.3 points from random" in line for line in sentences] == [False, True]
    write_answer(tmp_path, "When?", sentences, compare(figures), [])
    answer = (tmp_path / "answer.md").read_text()
    assert "± 0.0" not in answer
    assert "| raw-pixels | 52.1 | 2 |" in answer


def test_few_labels_that_are_enough_already(rows):
    figures = by_setting(rows)
    key = next(key for key in figures if key.method == "from-scratch" and key.labels == "10" and key.imbalance == 1)
    figures[key] = dict.fromkeys(figures[key], 0.9)
    text = "for what it gets with 10 labels a class, training from scratch needs no more than 10."
    assert f"With 100 images, balanced classes, {text}" in answers(figures, classes=2)


def test_nothing_done_is_no_answer():
    assert answers({}, classes=2) == []
