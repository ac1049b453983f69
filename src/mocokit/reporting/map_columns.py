"""The map of the images as columns of a feature file, so that other viewers can show it."""

import numpy as np
import pyarrow as pa
import torch

from mocokit.deploy.feature_file import feature_matrix
from mocokit.reporting.clusters import cluster
from mocokit.reporting.neighbours import SHOWN, neighbours
from mocokit.reporting.projection import project


def with_map(table: pa.Table, seed: int) -> pa.Table:
    """A `mocokit.deploy.feature_file.feature_table` with the map of a report as columns.

    ``x`` and ``y`` (float32), ``cluster`` (int32, 1 is the largest), ``neighbours`` (five rows by cosine, the
    greatest first).
    """
    features = torch.from_numpy(feature_matrix(table).astype(np.float32))
    near = neighbours(features)
    positions = project(features, near, seed)
    rows = near.rows[:, :SHOWN].int().numpy()
    columns = {
        "x": pa.array(positions[:, 0]),
        "y": pa.array(positions[:, 1]),
        "cluster": pa.array((cluster(features, None, seed).of + 1).astype(np.int32)),
        "neighbours": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
    }
    for place, (name, column) in enumerate(columns.items(), start=table.schema.get_field_index("feature")):
        table = table.add_column(place, name, column)
    return table
