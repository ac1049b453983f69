"""The map's columns of a feature file."""

import numpy as np
import pyarrow as pa

from mocokit.deploy.feature_file import feature_matrix, feature_table
from mocokit.reporting.clusters import cluster
from mocokit.reporting.map_columns import with_map
from mocokit.reporting.neighbours import neighbours
from mocokit.reporting.projection import project
from tests.reporting.made import blobs


def test_they_are_those_of_a_report():
    x, _ = blobs(10, 3)
    paths = [f"{n}.png" for n in range(30)]
    table = with_map(feature_table(x.numpy(), {"path": paths}), 0)
    assert table.column_names == ["path", "x", "y", "cluster", "neighbours", "feature"]
    near = neighbours(x)
    assert np.array_equal(np.stack([table["x"], table["y"]], axis=1), project(x, near, 0))
    assert np.array_equal(table["cluster"].to_numpy(), cluster(x, None, 0).of + 1)
    assert table["neighbours"].to_pylist() == near.rows[:, :5].tolist()
    assert table["path"].to_pylist() == paths
    assert np.array_equal(feature_matrix(table), x.numpy())
    assert [table.schema.field(n).type for n in ("x", "cluster")] == [pa.float32(), pa.int32()]


def test_half_precision_and_few_rows():
    x = blobs(1, 3)[0].numpy().astype(np.float16)
    table = with_map(feature_table(x, {}), 0)
    assert [len(near) for near in table["neighbours"].to_pylist()] == [2, 2, 2]
