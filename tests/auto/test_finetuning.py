"""Batch size and learning rate of fine-tuning: within their bounds, and monotonous in what they depend on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.auto.finetuning import choose_batch_size, choose_epochs, choose_lr


@given(st.integers(1, 10**7), st.integers(0, 10**6))
def test_more_images_never_take_smaller_batches(images, more):
    assert 16 <= choose_batch_size(images) <= choose_batch_size(images + more) <= 64


def test_an_epoch_has_32_steps_where_the_batch_may_be_chosen():
    assert [choose_batch_size(n) for n in (100, 640, 2048, 50_000)] == [16, 20, 64, 64]


@given(st.integers(1, 5000), st.integers(0, 5000), st.booleans())
def test_wider_networks_never_learn_faster(features, more, batch_norm):
    assert choose_lr(features + more, batch_norm) <= choose_lr(features, batch_norm)
    assert choose_lr(features, True) >= choose_lr(features, False)


def test_the_documented_rate():
    assert choose_lr(512, True) == pytest.approx(0.001)
    assert choose_lr(128, True) == pytest.approx(0.004)
    assert choose_lr(128, False) == pytest.approx(0.001)


@given(st.floats(0, 1e5), st.floats(1e-3, 1e4), st.floats(0, 1e4), st.integers(1, 200))
def test_the_epochs_that_are_chosen_fit_and_one_more_would_not(seconds, epoch, once, most):
    chosen = choose_epochs(seconds, epoch, once, most)
    assert 1 <= chosen <= most
    assert chosen == 1 or once + chosen * epoch <= seconds * (1 + 1e-9)
    assert chosen == most or once + (chosen + 1) * epoch > seconds * (1 - 1e-9)
