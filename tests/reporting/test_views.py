"""The two views of a report are those that pretraining draws."""

import numpy as np

import mocokit
from mocokit.data.store import open_store
from mocokit.reporting.views import two_views
from mocokit.rundir import RunDirectory


def test_as_draw_views_gives_them(tiny_run):
    config = RunDirectory(tiny_run.path).read_config().config
    store = open_store(str(tiny_run.data), image_size=config.image_size)
    found = two_views(store.splits["train"], np.arange(4), config)
    names = ("recipe", "crop_min", "gray_p", "seed", "image_size")
    expected = mocokit.draw_views(str(tiny_run.data), count=4, **{n: getattr(config, n) for n in names})[1:]
    for view, other in zip(found, expected, strict=True):
        assert view.shape == (4, 3, 8, 8)
        assert np.array_equal(view.transpose(0, 2, 3, 1), other)
    assert not np.array_equal(found[0], found[1])
