"""The grid of a study: from the options to cells, what does not fit refused or told."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.config import StudyConfig
from mocokit.data.long_tail import class_counts
from mocokit.errors import UserError
from mocokit.studies.plan import METHODS, Cell, make_plan

NAMES = ("cat", "dog", "owl")
LABELS = np.repeat([0, 1, 2, -1], [100, 100, 100, 9])


def plan_of(**options):
    return make_plan(StudyConfig(data="d", **options), LABELS, NAMES)


def test_the_plan_of_no_option():
    plan = plan_of()
    assert [t.cell for t in plan.trials] == [Cell(n, 0.0, s) for s in (0, 1, 2) for n in (300, 150, 75)]
    assert plan.trials[0].counts == {"cat": 100, "dog": 100, "owl": 100}
    assert plan.methods == tuple(METHODS)
    assert plan.notes == ()
    assert plan.trials[0].cell.name == "n300-r0-s0"


@settings(max_examples=30)
@given(sizes=st.sets(st.integers(40, 120), min_size=1, max_size=3), seeds=st.integers(1, 3))
def test_a_grid(sizes, seeds):
    plan = plan_of(sizes=",".join(map(str, sizes)), imbalance="1,2.5,10", labels="2,all,5", seeds=seeds)
    cells = [t.cell for t in plan.trials]
    assert set(cells) == {Cell(n, r, s) for n in sizes for r in (1.0, 2.5, 10.0) for s in range(seeds)}
    assert len({cell.name for cell in cells}) == len(cells)
    for trial in plan.trials:
        counts = class_counts(np.array([100, 100, 100]), trial.cell.images, trial.cell.imbalance, trial.cell.seed)
        assert list(trial.counts.values()) == counts.tolist()
        assert trial.labels == tuple(k for k in ("2", "5", "all") if k == "all" or int(k) <= min(counts))
        note = (
            f"{trial.cell.images:,} images at imbalance {trial.cell.imbalance:g} have a class of {min(counts)}, so no "
        )
        assert any(line.startswith(note) for line in plan.notes) == (len(trial.labels) < 3)


def test_sizes_that_are_not_given_fit_every_imbalance():
    for ratios, sizes in (("1,4", [43, 87, 175]), ("1,100", [111])):  # 100 + 50 + 25; 100 + 10 + 1
        assert sorted({t.cell.images for t in plan_of(imbalance=ratios, seeds=1).trials}) == sizes


def test_what_is_told_and_what_a_trial_is_told():
    plan = plan_of(sizes="100", imbalance="1,4", labels="2,all", methods="moco,from-scratch", seeds=2)
    assert plan.lines() == [
        "4 trials: 100 images, imbalance 1, 4 (0: as they are), 2 seeds",
        "labels a class: 2, all; methods: from-scratch, moco",
    ]
    one = plan_of(sizes="100", imbalance="1", labels="all", methods="moco", seeds=1)
    assert one.lines()[0] == "1 trial: 100 images, imbalance 1 (0: as they are), 1 seed"
    request = plan.trials[0].request({"data": "d"})
    assert json.loads(json.dumps(request)) == request
    assert request["cell"] == {"images": 100, "imbalance": 1.0, "seed": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": "10,x"}, "--sizes 10,x: write numbers with commas between"),
        ({"sizes": "0"}, "--sizes 0: write numbers"),
        ({"imbalance": "nan"}, "--imbalance nan: write numbers"),
        ({"labels": "1,all"}, "--labels 1: training stops by a held-out label"),
        (
            {"labels": "a.csv"},
            "--labels a.csv: write labels a class, such as 10,100,all; a table of labels is --labels-file",
        ),
        ({"methods": "simclr"}, "--methods simclr: is none of raw-pixels, random-init"),
        ({"methods": "off-the-shelf"}, "--methods off-the-shelf: .*needs --weights"),
        ({"sizes": "301", "imbalance": "1"}, "--sizes 301: some class has too few images for --imbalance 1; 300 fit"),
        ({"imbalance": "500"}, "--imbalance 500: .* with seed 0, .* at most 100 fits"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        plan_of(**options)


def test_weights_add_two_methods():
    assert plan_of(weights="w").methods == (*METHODS, "off-the-shelf", "moco-continued")
