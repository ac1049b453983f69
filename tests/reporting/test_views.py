"""The two views of a report are those that pretraining draws."""

from dataclasses import replace

import numpy as np
from PIL import Image

import mocokit
from mocokit.data.sampler import random_subset
from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from mocokit.reporting.views import two_views, views_picture
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


def test_views_of_one_colour_have_that_colour(tiny_run, tmp_path):
    colours = [(250, 3, 40), (0, 128, 255), (90, 90, 90)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (12, 10), colour).save(tmp_path / f"{number}.png")
    images = open_store(open_source(str(tmp_path)), image_size=8).splits["train"]
    config = replace(RunDirectory(tiny_run.path).read_config().config, jitter_strength=0, gray_p=0)
    for view in two_views(images, np.arange(3), config):
        assert (view.dtype, view.shape) == (np.uint8, (3, 3, 8, 8))
        np.testing.assert_array_equal(view, np.broadcast_to(np.array(colours)[:, :, None, None], view.shape))


def test_the_picture_has_both_views_of_each_image(tiny_run):
    config = RunDirectory(tiny_run.path).read_config().config
    images = open_store(str(tiny_run.data), image_size=config.image_size).splits["train"]
    seen = views_picture(images, config)
    rows = random_subset(len(images), 8, config.seed).numpy()
    views = np.stack(two_views(images, rows, config))  # [2, 8, C, 8, 8], each enlarged eight times
    assert seen.shape == (2 * 66 - 2, 8 * 66 - 2, 3)
    for which, number in np.ndindex(2, 8):
        shown = seen[66 * which :, 66 * number :][4:64:8, 4:64:8]
        np.testing.assert_array_equal(shown.transpose(2, 0, 1), views[which, number])
