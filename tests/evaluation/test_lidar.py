"""LiDAR, against a slow reference and where its value is known; its views do not depend on who asks."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from mocokit.data.store import open_store
from mocokit.evaluation.lidar import DELTA, IMAGES, VIEWS, lidar, neutral_views, trial_views
from mocokit.model.encoder import Encoder, EncoderSpec
from tests.tiny_runs import coloured_data


def reference(views: np.ndarray) -> float:
    """Sums one view at a time, and the generalised eigenvalues of both scatters."""
    n, v, d = views.shape
    grand, between, within = views.mean((0, 1)), np.zeros((d, d)), np.zeros((d, d))
    for image in views:
        mean = image.mean(0)
        between += np.outer(mean - grand, mean - grand) / (n - 1)
        for view in image:
            within += np.outer(view - mean, view - mean) / (n * (v - 1))
    p = np.clip(scipy.linalg.eigh(between, within + DELTA * np.eye(d), eigvals_only=True), 0, None)
    p /= p.sum()
    return math.exp(-sum(share * math.log(share + 1e-12) for share in p))


@pytest.mark.parametrize(("n", "v", "d"), [(40, 4, 7), (5, 3, 12), (60, 8, 3)])
def test_it_is_the_reference(n, v, d):
    draw = np.random.default_rng(0)
    views = draw.normal(size=(n, 1, d)) * draw.uniform(0.1, 3, d) + 0.5 * draw.normal(size=(n, v, d))
    assert lidar(torch.from_numpy(views)) == pytest.approx(reference(views), rel=1e-6)


def test_equal_directions_count_one_each_and_noise_none():
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(500, 6, generator=draw, dtype=torch.float64)
    means = torch.linalg.qr(means - means.mean(0))[0] * 500**0.5  # uncorrelated, of equal variance
    noise = torch.randn(500, 8, 10, generator=draw, dtype=torch.float64)
    noise -= noise.mean(1, keepdim=True)
    noise[..., 6:] *= 100  # loud, but the same for all images
    views = noise + torch.nn.functional.pad(means, (0, 4))[:, None]
    assert lidar(views) == pytest.approx(6, rel=0.02)


def test_a_line_is_one_direction_and_no_difference_too_little_to_count():
    along = torch.arange(30.0)[:, None, None] * torch.ones(1, 4, 5)
    assert lidar(along) == pytest.approx(1, abs=1e-6)
    assert math.isfinite(lidar(torch.ones(30, 4, 5)))


def test_views_are_always_the_same(tmp_path):
    store = open_store(str(coloured_data(tmp_path)), image_size=8, workers=0)
    images = store.splits["train"]
    torch.manual_seed(0)
    encoder = Encoder.create(EncoderSpec("resnet18_narrow", 8, 3, (0.5,) * 3, (0.2,) * 3))
    first = trial_views(encoder, images)
    torch.manual_seed(5)
    assert first.shape == (min(IMAGES, len(images)), VIEWS, first.shape[2])
    torch.testing.assert_close(trial_views(encoder, images), first, rtol=0, atol=0)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_neutral_views_show_the_way_round_that_images_have():
    assert (neutral_views(3).flip_p, neutral_views(3).blur_p) == (0, 0)
    assert 0.2 < neutral_views(3).crop_scale[0] < 1  # between the papers' and none


def test_grey_images_have_no_colours_to_change():
    assert neutral_views(1).gray_p == 0
    assert neutral_views(3).gray_p > 0
