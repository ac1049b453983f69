"""Search and near-duplicates against slow NumPy in float64, in every way the work can be cut into pieces."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

import mocokit.deploy.nearest as module
from mocokit.deploy.nearest import Pair, connected, duplicates, groups, least_cosine, nearest, unit, vectors
from mocokit.errors import UserError


class Made:
    """Features in memory, in blocks of any length."""

    path = Path("made.npy")
    metadata = None

    def __init__(self, matrix, block):
        self.matrix, self.block = matrix, block
        self.rows, self.dim = matrix.shape

    def blocks(self, start=0):
        for first in range(start, self.rows, self.block):
            yield first, self.matrix[first : first + self.block].copy()

    def named(self, rows):
        raise AssertionError("no names are needed")


def cosines(queries, matrix):
    """In float64; zero vectors have the cosine 0."""
    a, b = queries.astype(float), matrix.astype(float)
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return np.divide(a @ b.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def features(seed, rows, dim, copies=0):
    """Random rows; some are copies of others, on another scale."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, dim)).astype(np.float32)
    for _ in range(copies):
        source, target = rng.integers(0, rows, 2)
        matrix[target] = 2 * matrix[source]
    return matrix


def assert_nearest(found, queries, matrix, k, without):
    similarity = cosines(queries, matrix)
    for row, neighbours in enumerate(found):
        candidates = [i for i in range(len(matrix)) if i != without[row]]
        best = sorted((similarity[row, i] for i in candidates), reverse=True)[:k]
        assert [n.similarity for n in neighbours] == pytest.approx(best, abs=2e-6)
        assert [n.similarity for n in neighbours] == pytest.approx(
            [similarity[row, n.row] for n in neighbours], abs=2e-6
        )
        assert len({n.row for n in neighbours}) == len(neighbours) == min(k, len(candidates))
        assert without[row] not in {n.row for n in neighbours}
        ranks = [(-n.similarity, n.row) for n in neighbours]
        assert ranks == sorted(ranks)  # equal ones by row


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 60),
    dim=st.integers(1, 9),
    asked=st.integers(1, 5),
    k=st.integers(1, 70),
    block=st.integers(1, 70),
    chunk=st.integers(1, 200),
)
def test_equals_slow_numpy(seed, rows, dim, asked, k, block, chunk):
    matrix = features(seed, rows, dim, copies=rows // 4)
    rng = np.random.default_rng(seed)
    without = [int(rng.integers(rows)) if rng.random() < 0.5 else None for _ in range(asked)]
    queries = np.stack([rng.normal(size=dim) if row is None else matrix[row] for row in without])
    queries = queries.astype(np.float32)
    made = Made(matrix, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_FLOATS", chunk)
        found = nearest(made, queries, k, without)
    assert_nearest(found, queries, matrix, k, without)


def test_equals_scikit_learn():
    matrix, queries = features(0, 3000, 32), features(1, 20, 32)
    distance, rows = NearestNeighbors(n_neighbors=10, metric="cosine").fit(matrix).kneighbors(queries)
    found = nearest(Made(matrix, 700), queries, 10, [None] * 20)
    assert [[n.row for n in neighbours] for neighbours in found] == rows.tolist()
    assert np.allclose([[n.similarity for n in neighbours] for neighbours in found], 1 - distance, atol=2e-6)


@pytest.mark.parametrize("block", [1, 3, 7, 50])
def test_identical_images_come_in_the_order_of_their_rows(block):
    """Whatever the block: their products may differ in the last bit."""
    matrix = features(0, 50, 129)
    matrix[[3, 8, 20, 41]] = matrix[11]
    (neighbours,) = nearest(Made(matrix, block), matrix[[11]], 4, [11])
    assert [(n.row, n.similarity) for n in neighbours] == [(3, 1.0), (8, 1.0), (20, 1.0), (41, 1.0)]


def test_scale_and_zero_vectors():
    matrix = np.array([[1e-30, 0], [0, 0], [3e38, 3e38], [-1e30, 0], [1e-42, 1e-42]], np.float32)
    (neighbours,) = nearest(Made(matrix, 2), np.array([[5, 0]], np.float32), 5, [None])
    assert [n.row for n in neighbours] == [0, 2, 4, 1, 3]
    assert [n.similarity for n in neighbours] == pytest.approx([1, 0.5**0.5, 0.5**0.5, 0, -1], abs=1e-6)


def test_unit_vectors():
    assert np.allclose(np.linalg.norm(unit(features(0, 9, 5) * 1e25), axis=1), 1)


def test_rows_as_queries():
    matrix = features(0, 10, 3)
    matrix[4] = 0
    made = Made(matrix, 4)
    assert np.array_equal(vectors(made, [9, 0, 9]), matrix[[9, 0, 9]])
    with pytest.raises(UserError, match=r"row 10: made\.npy has rows 0 to 9"):
        vectors(made, [0, 10])
    with pytest.raises(UserError, match=r"row 4 .* zero vector"):
        vectors(made, [4])


# Near-duplicates ------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 50),
    block=st.integers(1, 60),
    chunk=st.integers(1, 900),
    threshold=st.sampled_from([-1.0, 0.0, 0.7, 0.99, 1.0]),
)
def test_duplicates_equal_slow_numpy(seed, rows, block, chunk, threshold):
    matrix = features(seed, rows, 4, copies=rows // 3)
    similarity = cosines(matrix, matrix).round(6)
    expected = [
        (-similarity[i, j], i, j) for i in range(rows) for j in range(i + 1, rows) if similarity[i, j] >= threshold
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_FLOATS", chunk)
        pairs, count = duplicates(Made(matrix, block), threshold)
    assert count == len(expected)
    assert {pair.rows for pair in pairs} == {(i, j) for _, i, j in expected}
    assert [p.similarity for p in pairs] == pytest.approx([-s for s, *_ in sorted(expected)], abs=2e-6)
    ranks = [(-pair.similarity, pair.rows) for pair in pairs]
    assert ranks == sorted(ranks)


def test_the_most_similar_are_kept_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(module, "MAX_PAIRS", 20)
    monkeypatch.setattr(module, "CHUNK_FLOATS", 100)
    matrix = features(0, 40, 3)
    pairs, count = duplicates(Made(matrix, 15), 0.0)
    similarity = cosines(matrix, matrix)[np.triu_indices(40, 1)]
    assert count == (similarity >= 0).sum() > 100
    assert [p.similarity for p in pairs] == pytest.approx(sorted(similarity)[:-21:-1], abs=2e-6)


def test_zero_vectors_are_nobodys_duplicates():
    matrix = np.array([[0, 0], [0, 0], [1, 1], [1, 1]], np.float32)
    assert [pair.rows for pair in duplicates(Made(matrix, 3), -1.0)[0]] == [(2, 3)]
    assert [pair.rows for pair in duplicates(Made(matrix, 3), 1.0)[0]] == [(2, 3)]


@settings(max_examples=30)
@given(seed=st.integers(0, 99), rows=st.integers(1, 60), block=st.integers(1, 70), asked=st.integers(1, 80))
def test_the_cosine_of_near_duplicates_is_five_times_nearer_than_usual(seed, rows, block, asked):
    matrix = features(seed, rows, 4, copies=rows // 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "USUAL_ROWS", asked)
        least = least_cosine(Made(matrix, block))
    if rows == 1:
        assert least == 1
        return
    similarity = cosines(matrix, matrix)
    np.fill_diagonal(similarity, -1)
    chosen = np.unique(np.linspace(0, rows - 1, asked, dtype=int))
    usual = np.median(similarity.max(axis=1)[chosen])
    assert least == pytest.approx(1 - (1 - usual) / 5, abs=2e-6)


def test_copies_are_found_among_images_that_are_all_alike():
    """A cosine of 0.99, as was the default of people's scripts, would take nearly all of them."""
    rng = np.random.default_rng(0)
    matrix = np.concatenate([np.full((400, 1), 12.0), rng.normal(size=(400, 40)) / 6], axis=1).astype(np.float32)
    matrix[7], matrix[300] = matrix[5] + 1e-3, matrix[200]
    usual = duplicates(Made(matrix, 64), 0.99)[1]
    pairs, count = duplicates(Made(matrix, 64), least_cosine(Made(matrix, 64)))
    assert usual > 1000
    assert {pair.rows for pair in pairs} == {(5, 7), (200, 300)}
    assert count == 2


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda ends: ends[0] < ends[1]), max_size=40))
def test_groups_are_what_pairs_connect(ends):
    found = groups([Pair(pair, 1.0) for pair in ends])
    group = {row: {row} for pair in ends for row in pair}
    for one, other in ends:  # slowly: merge until nothing changes
        for row in (merged := group[one] | group[other]):
            group[row] = merged
    assert sorted(map(tuple, found)) == sorted({tuple(sorted(rows)) for rows in group.values()})
    assert [len(rows) for rows in found] == sorted(map(len, found), reverse=True)
    assert groups([]) == []
    first = connected(np.array(ends or np.empty((0, 2)), int).reshape(-1, 2), 31)
    assert all(first[row] == min(group.get(row, {row})) for row in range(31))
