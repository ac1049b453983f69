"""Convolutions as matrix products: the same numbers as torch's convolution, and only where they are meant to be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mocokit.model import conv as conv_module
from mocokit.model.conv import SMALL, WIDE, ProductConv2d, _Product, _ProductOfGradient, multiply_small


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (2, 2, 0), (7, 2, 3), (3, 1, 0)]),
    st.booleans(),
)
def test_products_and_their_gradients_are_those_of_convolution(N, C, D, H, W, geometry, channels_last):
    kernel, stride, padding = geometry
    H, W = H + kernel, W + kernel
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(N, C, H, W, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(D, C, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv2d(x, weight, None, stride, padding)
    target = torch.randn_like(expected)
    of_all = _Product.apply(x, weight, stride, padding).view(N, *expected.shape[2:], D).permute(0, 3, 1, 2)
    of_gradient = _ProductOfGradient.apply(x, weight, stride, padding)
    theirs = torch.autograd.grad(expected, (x, weight), target)
    for found in (of_all, of_gradient):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, (x, weight), target), theirs)


def calls(monkeypatch):
    """The names of the products that were computed."""
    made = []
    for function in (_Product, _ProductOfGradient):

        def noted(*arguments, function=function, apply=function.apply):
            made.append(function.__name__)
            return apply(*arguments)

        monkeypatch.setattr(function, "apply", noted)
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["_Product", "_ProductOfGradient"])
def test_products_are_for_small_results_in_bfloat16(monkeypatch, bias, kind):
    made = calls(monkeypatch)
    monkeypatch.setattr(conv_module, "WIDE", 3 if kind == "_Product" else WIDE)
    plain = nn.Conv2d(3, 5, 3, padding=1, bias=bias)
    conv = multiply_small(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=bias)))
    conv[0].load_state_dict(plain.state_dict())
    small, large = torch.randn(2, 3, SMALL, SMALL), torch.randn(2, 3, SMALL + 1, SMALL)
    assert torch.equal(conv(small), plain(small))
    assert not made
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(large), plain(large))
        assert not made
        found, expected = conv(small), plain(small)
        assert made == [kind]
        with torch.no_grad():
            torch.testing.assert_close(conv(small), expected, rtol=2e-2, atol=2e-2)
    assert made == [kind] * (2 if kind == "_Product" else 1)  # without a gradient torch's is as fast there
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    found.relu_().float().sum().backward()  # as networks without batch norm do
    assert conv[0].weight.grad.dtype == torch.float32


def test_unusual_convolutions_stay_as_they_are():
    unusual = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, (3, 1)),
        nn.Conv2d(4, 4, 3, stride=(2, 1)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3),
    )
    kinds = [type(m) for m in unusual]
    assert [type(m) for m in multiply_small(unusual)] == kinds
    assert type(multiply_small(nn.Sequential(nn.Conv2d(4, 4, 3)))[0]) is ProductConv2d


def test_a_compiler_gets_the_plain_convolution(monkeypatch):
    """Of the products' gradients, sums into parts of an image, torch's compiler does not come to an end."""
    made, graphs = calls(monkeypatch), []
    conv = multiply_small(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)))
    compiled = torch.compile(conv, backend=lambda graph, inputs: graphs.append(graph) or graph)
    with torch.autocast("cpu", torch.bfloat16):
        compiled(torch.randn(2, 3, SMALL, SMALL))
    assert not made
    assert "conv2d" in graphs[0].code
