"""The verdict on a run: learning, not learning or collapsed."""

import pytest

from mocokit.evaluation.evaluator import Metrics
from mocokit.evaluation.knn import Accuracy
from mocokit.evaluation.verdict import verdict


def metrics(top1: float | None = None, rankme: float = 30.0, retrieval: float = 0.5) -> Metrics:
    scores = {"rankme": rankme, "alignment": 1.0, "uniformity": -2.0, "retrieval": retrieval}
    return Metrics(None if top1 is None else Accuracy(top1, 1.0), scores)


@pytest.mark.parametrize(
    ("loss", "encoder", "random_init", "state", "words"),
    [
        (0.8, metrics(0.41), metrics(0.29), "learning", "kNN top-1 41.0 %, +12.0 points"),
        (0.8, metrics(0.29), metrics(0.29), "not learning", "+0.0 points"),
        (0.8, metrics(0.2), metrics(0.3), "not learning", "-10.0 points"),
        (1.0, metrics(0.1, rankme=1.2), metrics(0.3), "collapsed", "effective rank of 1.2"),
        (1.0, metrics(rankme=1.0, retrieval=0.0), metrics(), "collapsed", "effective rank of 1.0"),
        (0.7, metrics(retrieval=0.9), metrics(), "learning", "two-view retrieval 90.0 %, 50.0 % at random"),
        (0.7, metrics(retrieval=0.4), metrics(), "not learning", "two-view retrieval 40.0 %"),
        (1.1, metrics(retrieval=0.9), metrics(), "not learning", "110 % of chance"),
        (0.8, metrics(0.4, retrieval=0.0), metrics(0.2, retrieval=0.0), "learning", "+20.0 points"),
    ],
)
def test_verdict(loss, encoder, random_init, state, words):
    found = verdict(loss, encoder, random_init, queries=10_000)
    assert found.startswith(f"{state}: ")
    assert words in found
    assert f"loss at {100 * loss:.0f} % of chance" in found


@pytest.mark.parametrize(("queries", "state"), [(6, "not learning"), (300, "not learning"), (500, "learning")])
def test_a_gain_within_the_noise_is_no_gain(queries, state):
    found = verdict(0.8, metrics(0.45), metrics(0.40), queries)
    assert found.startswith(f"{state}: ")
    assert ("within the noise" in found) == (state == "not learning")
