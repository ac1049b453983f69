"""Encoding many images: features are those of `Encoder.embed`, in order, however the work is shared."""

import numpy as np
import pytest
import torch

import mocokit.model.encoding as module
from mocokit.data.pixels import pad
from mocokit.model.encoder import Encoder, EncoderSpec, NonFiniteFeatures
from mocokit.model.encoding import batch_size, encode, encoding_precision, streams
from tests.helpers import noise

CPU = torch.device("cpu")


@pytest.fixture
def encoder() -> Encoder:
    return Encoder.create(EncoderSpec("resnet18_narrow", 8, 3, (0.5,) * 3, (0.2,) * 3))


@pytest.fixture
def threads():
    """Two threads for torch; the number of before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def images(count: int) -> list[np.ndarray]:
    return [noise(i, 5 + i % 7, 8 + i % 3).transpose(2, 0, 1) for i in range(count)]


def batches(arrays, size):
    for start in range(0, len(arrays), size):
        pixels, sizes = pad(arrays[start : start + size])
        yield torch.from_numpy(pixels), torch.from_numpy(sizes)


@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_features_are_those_of_embed(encoder, threads, many, size, monkeypatch):
    monkeypatch.setattr(module, "MANY", many)
    monkeypatch.setattr(module, "MIN_BATCH", 3)
    arrays = images(40)
    expected = encoder.embed([image.transpose(1, 2, 0) for image in arrays])
    found = list(encode(encoder, batches(arrays, size), images=40))
    assert [len(features) for features in found] == [len(sizes) for _, sizes in batches(arrays, size)]
    assert torch.allclose(torch.cat(found), expected, rtol=0, atol=1e-5)


def test_repeatable_to_the_bit(encoder, threads):
    arrays = images(200)
    first, second = (torch.cat(list(encode(encoder, batches(arrays, 32), images=200))) for _ in range(2))
    assert torch.equal(first, second)


def test_streams_compute_on_one_thread_each(encoder, threads, monkeypatch):
    used, features = [], module._features

    def watched(*arguments):
        used.append(torch.get_num_threads())
        return features(*arguments)

    monkeypatch.setattr(module, "_features", watched)
    list(encode(encoder, batches(images(128), 32), images=128))
    assert used == [1] * 4
    used.clear()
    list(encode(encoder, batches(images(8), 4), images=8))
    assert used == [threads] * 2
    assert torch.get_num_threads() == threads


def test_batches_are_read_as_they_are_needed(encoder, threads):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield from batches(images(4), 4)

    encoded = encode(encoder, endless(), images=10_000)
    for _ in range(3):
        next(encoded)
    encoded.close()
    assert read <= 3 + threads + 1
    assert torch.get_num_threads() == threads


def test_the_mode_is_restored(encoder):
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    list(encode(encoder, batches(images(4), 2), images=4))
    assert encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_a_failure_reaches_the_caller(encoder):
    wrong = torch.zeros(1, 5, 8, 8, dtype=torch.uint8), torch.tensor([[8, 8]])
    with pytest.raises(ValueError):
        list(encode(encoder, [wrong], images=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [4, 200])  # as it is, or with batch norm folded
def test_features_that_are_no_numbers_are_refused(encoder, value, count):
    encoder.backbone.layer4[-1].bn2.bias.data.fill_(value)
    encoder.name = "run/encoder.safetensors"
    pixels, sizes = pad(images(count))
    message = "run/encoder.safetensors gives features that are infinite or not a number; train it again with a lower"
    with pytest.raises(NonFiniteFeatures, match=message):
        list(encode(encoder, [(torch.from_numpy(pixels), torch.from_numpy(sizes))], images=count))


def test_an_empty_batch(encoder):
    pixels, sizes = pad([])
    (features,) = encode(encoder, [(torch.from_numpy(pixels), torch.from_numpy(sizes))], images=1)
    assert features.shape == (0, encoder.dim)


def test_precision_is_what_is_asked_for(encoder):
    full, half = (
        torch.cat(list(encode(encoder, batches(images(4), 2), images=4, precision=precision)))
        for precision in ("fp32", "bf16")
    )
    with torch.autocast("cpu", torch.bfloat16):
        again = torch.cat(list(encode(encoder, batches(images(4), 2), images=4)))
    assert torch.equal(full, again)
    assert full.dtype == half.dtype == torch.float32
    assert 1e-4 < float((half - full).norm() / full.norm()) < 2e-2


def test_streams_share_the_largest_batch(threads):
    assert (streams(CPU, 99), batch_size(CPU, 99)) == (1, 256)
    assert (streams(CPU, 1000), batch_size(CPU, 1000), batch_size(CPU, 1000, 4)) == (2, 128, 32)
    assert streams(torch.device("cuda"), 1000) == 1


@pytest.mark.parametrize(
    ("half", "agree", "expected"), [(0.5, True, "bf16"), (0.95, True, "fp32"), (0.5, False, "fp32")]
)
def test_bf16_is_taken_where_it_is_faster_and_gives_the_same(
    encoder, monkeypatch, tmp_path, capsys, half, agree, expected
):
    """Tried once, and not for few images, on another device, or where there is no such arithmetic."""
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path))
    tried = []

    def features(copy, batch, precision):
        tried.append(precision)
        return torch.ones(3, 4) if agree or precision == "fp32" else torch.tensor([[1.0, 1, 1, 0]]).expand(3, 4)

    monkeypatch.setattr(module, "_features", features)
    monkeypatch.setattr(module, "shortest", lambda call: half if call() is not None and tried[-1] == "bf16" else 1.0)
    monkeypatch.setattr(module, "computes_in_bf16", lambda device: False)
    assert encoding_precision(encoder, 10**6) == "fp32"
    monkeypatch.setattr(module, "computes_in_bf16", lambda device: True)
    assert encoding_precision(encoder, module.MANY_IN_BF16 - 1) == "fp32"
    assert not tried
    assert encoding_precision(encoder, module.MANY_IN_BF16) == expected
    assert f"encoding in {expected}" in capsys.readouterr().err
    count = len(tried)
    assert encoding_precision(encoder, 10**6) == expected
    assert len(tried) == count


def test_features_in_bf16_are_those_of_fp32_but_for_their_last_digits(encoder, threads):
    arrays = images(120)
    full, half = (
        torch.cat(list(encode(encoder, batches(arrays, 40), images=120, precision=p))) for p in ("fp32", "bf16")
    )
    assert not torch.equal(full, half)
    assert torch.cosine_similarity(full, half).min() > 0.999
