"""Seeded choices of images: each once an epoch, a function of seed and step."""

import threading

import torch
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.sampler import StepSampler, generator, random_subset, torch_seeded
from mocokit.seeding import derive_seed


def sampler(batch_size: int, seed: int = 0, count: int = 23) -> StepSampler:
    return StepSampler(torch.arange(count), batch_size, seed)


@given(st.integers(1, 23), st.integers(0, 5), st.integers(0, 4))
def test_an_epoch_sees_each_image_at_most_once(batch_size, seed, epoch):
    steps = sampler(batch_size, seed)
    assert steps.per_epoch == 23 // batch_size
    ids = torch.cat([steps.ids(epoch * steps.per_epoch + i) for i in range(steps.per_epoch)])
    assert len(ids) == steps.per_epoch * batch_size > 23 - batch_size
    assert len(set(ids.tolist())) == len(ids)
    assert set(ids.tolist()) <= set(range(23))


def test_epochs_and_seeds_shuffle_differently():
    orders = {tuple(sampler(23, seed).ids(epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(range(23)) not in orders


@given(st.permutations(range(12)))
def test_a_batch_depends_on_its_step_alone(order):
    fresh = [sampler(5).ids(step).tolist() for step in order]
    used = sampler(5)
    assert [used.ids(step).tolist() for step in order] == fresh


def test_some_rows():
    """Batches of chosen images only, all of them in an epoch; fewer than a batch are one batch."""
    rows = torch.arange(1, 23, 2)
    steps = StepSampler(rows, 5, 0)
    seen = torch.cat([steps.ids(step) for step in range(steps.per_epoch)])
    assert set(seen.tolist()) <= set(rows.tolist())
    assert len(set(seen.tolist())) == len(seen) == len(rows) // 5 * 5
    few = StepSampler(rows[:3], 50, 0)
    assert few.per_epoch == 1
    assert sorted(few.ids(7).tolist()) == rows[:3].tolist()


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 9))
def test_random_subset(count, most, seed):
    subset = random_subset(count, most, seed).tolist()
    assert len(subset) == min(count, most)
    assert subset == sorted(set(subset))
    assert all(0 <= index < count for index in subset)
    assert subset == random_subset(count, most, seed).tolist()


def test_random_subset_is_spread_and_seeded():
    assert random_subset(1000, 100, 0).tolist() != random_subset(1000, 100, 1).tolist()
    drawn = torch.bincount(torch.cat([random_subset(10, 5, seed) for seed in range(400)]))
    assert drawn.min() > 150  # expected 200 each, standard deviation 10
    assert drawn.max() < 250


def test_generators_differ_by_seed_purpose_and_step():
    draws = {
        torch.rand(1, generator=generator(seed, purpose, step)).item()
        for seed in (0, 1)
        for purpose in ("view 1", "view 2")
        for step in (0, 1)
    }
    assert len(draws) == 8


def test_threads_draw_what_one_would_and_leave_the_generator_as_it_was():
    drawn: dict[int, list[torch.Tensor]] = {}

    def draw(seed):
        with torch_seeded(seed, "init"):
            drawn[seed] = [torch.randn(3) for _ in range(300)]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)
    for seed in range(8):
        torch.manual_seed(derive_seed(seed, "init"))
        assert torch.equal(torch.stack(drawn[seed]), torch.stack([torch.randn(3) for _ in range(300)]))
