"""What is drawn for a view: distributed as torchvision's transforms, a function of the generator alone."""

import dataclasses
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2

from mocokit.data.view_params import sample_params
from tests.data.torchvision_views import HUE, SATURATION, SEEDS, SETS, generator


def torchvision_boxes(height: int, width: int, n: int) -> Tensor:
    crop = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    image = torch.empty(3, height, width)
    drawn = [crop.make_params([image]) for _ in range(n)]
    return torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])


@pytest.mark.parametrize(("height", "width"), [(200, 200), (200, 300), (300, 100), (40, 400)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Area, aspect ratio and position by Kolmogorov-Smirnov; the fixed seeds make the outcome certain."""
    n = 3000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = torchvision_boxes(height, width, n).double()
    sizes = torch.tensor([[height, width]] * n)
    ours = sample_params(SETS["v2"], sizes, 3, generator()).box.double()
    for quantity in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] / (height - b[:, 2] + 1),
        lambda b: b[:, 1] / (width - b[:, 3] + 1),
    ):
        assert ks_2samp(quantity(ours), quantity(reference)).pvalue > 0.01


@pytest.mark.parametrize(("height", "width"), [(1, 50), (50, 1), (10, 400), (400, 10)])
def test_box_that_never_fits_is_the_central_crop(height: int, width: int) -> None:
    """Where all ten attempts must fail, torchvision's rule leaves one box; ours is the same."""
    augmentation = dataclasses.replace(SETS["v2"], crop_scale=(0.9, 1.0))
    crop = v2.RandomResizedCrop(8, scale=(0.9, 1.0))
    expected = crop.make_params([torch.empty(3, height, width)])
    boxes = sample_params(augmentation, torch.tensor([[height, width]] * 50), 3, generator()).box
    assert boxes.unique(dim=0).tolist() == [[expected[k] for k in ("top", "left", "height", "width")]]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=20), SEEDS)
def test_boxes_lie_inside_their_images(sizes: list[tuple[int, int]], seed: int) -> None:
    limits = torch.tensor(sizes)
    box = sample_params(SETS["v1"], limits, 3, generator(seed)).box
    assert (box[:, :2] >= 0).all()
    assert (box[:, 2:] >= 1).all()
    assert (box[:, :2] + box[:, 2:] <= limits).all()


def test_jitter_factors_are_distributed_as_torchvisions() -> None:
    n = 4000
    augmentation = dataclasses.replace(SETS["v2"], jitter=(0.4, 0.8, 1.5, 0.1), jitter_p=1.0)
    ours = sample_params(augmentation, torch.full((n, 2), 32), 3, generator()).factors
    jitter = v2.ColorJitter(0.4, 0.8, 1.5, 0.1)
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = [jitter.make_params([]) for _ in range(n)]
    for column, name in enumerate(names):
        assert ks_2samp(ours[:, column], [p[name] for p in reference]).pvalue > 0.01
    assert ours[:, SATURATION].min() >= 0


def test_all_orders_are_equally_likely() -> None:
    n = 24_000
    order = sample_params(SETS["v2"], torch.full((n, 2), 32), 3, generator()).order
    counts = Counter(map(tuple, order.tolist()))
    assert len(counts) == math.factorial(4)
    assert max(abs(count - 1000) for count in counts.values()) < 5 * math.sqrt(1000)


@pytest.mark.parametrize("name", list(SETS))
def test_probabilities_and_ranges(name: str) -> None:
    """Frequencies within five standard errors; the papers' numbers, written out again."""
    n = 20_000
    params = sample_params(SETS[name], torch.full((n, 2), 32), 3, generator())
    expected = {
        "v1": {"flip": 0.5, "jittered": 1.0, "gray": 0.2, "sigma": 0.0, "solarized": 0.0},
        "v2": {"flip": 0.5, "jittered": 0.8, "gray": 0.2, "sigma": 0.5, "solarized": 0.0},
        "v3": {"flip": 0.5, "jittered": 0.8, "gray": 0.2, "sigma": 1.0, "solarized": 0.0},
        "v3, view 2": {"flip": 0.5, "jittered": 0.8, "gray": 0.2, "sigma": 0.1, "solarized": 0.2},
    }[name]
    for field, p in expected.items():
        frequency = getattr(params, field).bool().double().mean().item()
        assert abs(frequency - p) <= 5 * math.sqrt(p * (1 - p) / n), field
    blurred = params.sigma[params.sigma > 0]
    if len(blurred):
        assert ks_2samp(blurred, torch.rand(n, generator=generator(1)) * 1.9 + 0.1).pvalue > 0.01
    hue = 0.4 if name == "v1" else 0.1
    saturation = 0.2 if name.startswith("v3") else 0.4
    low, high = params.factors.amin(dim=0), params.factors.amax(dim=0)
    torch.testing.assert_close(low, torch.tensor([0.6, 0.6, 1 - saturation, -hue]), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.4, 1.4, 1 + saturation, hue]), atol=1e-3, rtol=0)
    assert params.gray_first == (name == "v1")
    assert torch.equal(
        params.factors[~params.jittered], torch.tensor([1.0, 1, 1, 0]).repeat((~params.jittered).sum(), 1)
    )


def test_draws_are_independent_of_each_other() -> None:
    params = sample_params(SETS["v2"], torch.full((20_000, 2), 64), 3, generator())
    draws = torch.stack(
        [params.box[:, 2], params.box[:, 3], params.flip, params.jittered, params.gray, params.sigma > 0]
    ).double()
    correlation = torch.corrcoef(draws).fill_diagonal_(0)
    correlation[0, 1] = correlation[1, 0] = 0  # height and width share the area
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_other_channel_counts_have_no_color_operations(channels: int) -> None:
    sizes = torch.full((500, 2), 32)
    params = sample_params(SETS["v2"], sizes, channels, generator())
    rgb = sample_params(SETS["v2"], sizes, 3, generator())
    assert not params.gray.any()
    assert (params.factors[:, SATURATION] == 1).all()
    assert (params.factors[:, HUE] == 0).all()
    assert torch.equal(params.factors[:, :SATURATION], rgb.factors[:, :SATURATION])
    assert torch.equal(params.box, rgb.box)


def test_parameters_are_a_function_of_the_generator() -> None:
    sizes = torch.full((10, 2), 32)
    a, b = (sample_params(SETS["v2"], sizes, 3, generator(7)) for _ in range(2))
    c = sample_params(SETS["v2"], sizes, 3, generator(8))
    assert torch.equal(a.box, b.box)
    assert torch.equal(a.factors, b.factors)
    assert not torch.equal(a.factors, c.factors)
