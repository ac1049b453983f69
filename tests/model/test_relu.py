"""ReLU of integers: torch's numbers, where it is meant to be."""

import pytest
import torch
from torch import nn

from mocokit.model import relu as relu_module
from mocokit.model.conv import multiply_small
from mocokit.model.relu import MUCH, IntegerReLU, _Rectify, rectify_integers


def all_numbers():
    """Every bfloat16 that is a number, infinities, denormals and both zeros included."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    return bits[~bits.isnan()]


def test_every_number_and_its_gradient_are_those_of_torch():
    x = all_numbers()
    slope = torch.randn(len(x)).bfloat16()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    ours, theirs = _Rectify.apply(inputs[0] * 1), torch.relu(inputs[1] * 1)
    assert torch.equal(ours, theirs)
    for y in (ours, theirs):
        y.backward(slope)
    assert torch.equal(inputs[0].grad, inputs[1].grad)


def calls(monkeypatch):
    made, apply = [], _Rectify.apply
    monkeypatch.setattr(_Rectify, "apply", lambda x: made.append(x.shape) or apply(x))
    return made


def test_integers_are_for_much_in_bfloat16(monkeypatch):
    made = calls(monkeypatch)
    relu = rectify_integers(nn.Sequential(nn.ReLU(inplace=True)))[0]
    for x in (torch.randn(MUCH), torch.randn(MUCH - 1).bfloat16(), torch.randn(MUCH, dtype=torch.float64)):
        assert torch.equal(relu(x.clone()), x.relu())
    assert not made
    x = torch.randn(MUCH).bfloat16()
    expected = x.relu()
    y = relu(x)
    assert torch.equal(y, expected)
    assert y.data_ptr() == x.data_ptr()  # in place
    assert len(made) == 1
    relu.eval()(x)
    assert len(made) == 1


def test_other_activations_stay_as_they_are():
    module = nn.Sequential(nn.ReLU(), nn.ReLU6(inplace=True), nn.SiLU(inplace=True), nn.ReLU(inplace=True))
    assert [type(m) for m in rectify_integers(module)] == [nn.ReLU, nn.ReLU6, nn.SiLU, IntegerReLU]


@pytest.mark.parametrize("channels", [4, 256])
def test_after_a_convolution_without_batch_norm(monkeypatch, channels):
    """Whose result is a view of a product's; the gradients are those of torch's own, but for the digits of bfloat16."""
    monkeypatch.setattr(relu_module, "MUCH", 1)
    made = calls(monkeypatch)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(inplace=True))
    ours = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(inplace=True))
    ours.load_state_dict(plain.state_dict())
    rectify_integers(multiply_small(ours))
    x = torch.randn(8, channels, 4, 4).contiguous(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    target = torch.randn(8, 4, 4, 4)
    for net, x in zip((plain, ours), inputs, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            (net(x).float() * target).sum().backward()
    assert len(made) == 1
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(ours[0].weight.grad, plain[0].weight.grad, rtol=3e-2, atol=0.2)
    torch.testing.assert_close(ours[0].bias.grad, plain[0].bias.grad, rtol=3e-2, atol=0.2)


class Times(nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return x if self.sign > 0 else -x


@pytest.mark.parametrize("sign", [1, -1])
def test_a_nan_reaches_the_gradient_before_it(monkeypatch, sign):
    """Which is what stops a run; that of one sign becomes 0 on the way."""
    monkeypatch.setattr(relu_module, "MUCH", 1)
    norm = nn.BatchNorm2d(2).bfloat16()
    net = rectify_integers(nn.Sequential(norm, Times(sign), nn.ReLU(inplace=True)))
    x = torch.randn(4, 2, 3, 3).bfloat16().requires_grad_()
    x.data[0, 0, 0, 0] = float("nan")
    net(x * 1).sum().backward()
    assert norm.weight.grad.isnan().tolist() == [True, False]
    assert x.grad[:, 0].isnan().all()


def test_a_compiler_gets_the_plain_activation(monkeypatch):
    made, graphs = calls(monkeypatch), []
    relu = rectify_integers(nn.Sequential(nn.ReLU(inplace=True)))
    compiled = torch.compile(relu, backend=lambda graph, inputs: graphs.append(graph) or graph)
    compiled(torch.randn(MUCH).bfloat16())
    assert not made
    assert "relu" in graphs[0].code
