"""Views by masks, as a GPU records them, against those that `augment` makes."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data import recorded_views
from mocokit.data.augment import augment
from mocokit.data.recorded_views import PACKED, Rendering, augment_recorded, pack
from mocokit.data.view_params import sample_params
from tests.data.torchvision_views import POINT, RESAMPLED, SEEDS, SETS, full_sizes, generator, noise

MEAN, STD = (0.1, 0.5, 0.7, 0.2), (0.2, 0.3, 0.4, 1.0)


def rendering(size, channels, *, gray_first=False, blur_radius=0, solarizes=False):
    return Rendering(size, MEAN[:channels], STD[:channels], gray_first, blur_radius, solarizes)


@given(st.sampled_from(list(SETS)), st.sampled_from([1, 3, 4]), st.sampled_from([7, 16, 40]), SEEDS)
def test_masks_give_what_slices_give(name, channels, size, seed):
    """Of canvases of any size, with and without each operation."""
    draw = generator(seed)
    images = noise(24, channels, 30, 23, seed=seed)
    sizes = torch.stack([torch.randint(1, n + 1, (24,), generator=draw) for n in (30, 23)], dim=1)
    augmentation = dataclasses.replace(SETS[name], jitter_p=0.7, gray_p=0.3, blur_p=0.5, solarize_p=0.3)
    params = sample_params(augmentation, sizes, channels, draw)
    render = rendering(
        size, channels, gray_first=params.gray_first, blur_radius=params.blur_radius, solarizes=True
    )  # fmt: skip
    expected = augment(images, params, size, MEAN[:channels], STD[:channels])
    views = render(images, pack(params))
    assert views.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(views, expected, atol=RESAMPLED / min(STD), rtol=0)


def test_an_order_of_its_own_for_each_image():
    """All 24 orders of the four operations at once, at their full strength."""
    order = torch.tensor([[*p] for p in itertools.permutations(range(4))])
    images = noise(24, 3, 16, 16)
    draw = generator()
    strong = dataclasses.replace(SETS["v2"], jitter=(0.8, 0.8, 0.8, 0.5), jitter_p=1.0, gray_p=0.0, blur_p=0.0)
    params = dataclasses.replace(sample_params(strong, full_sizes(images), 3, draw), order=order)
    expected = augment(images, params, 16, MEAN[:3], STD[:3])
    torch.testing.assert_close(rendering(16, 3)(images, pack(params)), expected, atol=POINT / min(STD), rtol=0)


def test_one_copy_takes_all_parameters_along():
    params = sample_params(SETS["v3, view 2"], full_sizes(noise(9, 3, 700, 500)), 3, generator())
    packed = pack(params)
    assert packed.shape == (PACKED, 9)
    assert packed.dtype == torch.float32
    assert torch.equal(packed[:4].T.long(), params.box)


def test_on_a_cpu_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(recorded_views, "recording", None)
    images = noise(6, 3, 20, 20)
    params = sample_params(SETS["v2"], full_sizes(images), 3, generator())
    views = augment_recorded(images, params, 12, MEAN[:3], STD[:3])
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(views, augment(images, params, 12, MEAN[:3], STD[:3]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(SETS))
def test_cuda_graph_renders_the_same_views_without_waiting(name):
    """One recording, batch after batch; the views of the first are not overwritten by the next."""
    kept, expected = [], []
    for seed in range(4):
        images = noise(64, 3, 32, 32, seed=seed)
        params = sample_params(SETS[name], full_sizes(images), 3, generator(seed))
        on_device = images.cuda()
        try:
            torch.cuda.set_sync_debug_mode("error" if seed else "default")
            kept.append(augment_recorded(on_device, params, 32, MEAN[:3], STD[:3]))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected.append(augment(images, params, 32, MEAN[:3], STD[:3]))
    torch.testing.assert_close(torch.stack(kept).cpu(), torch.stack(expected), atol=1e-4, rtol=0)
