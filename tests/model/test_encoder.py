"""Encoders take any kind of image, and give the same features in whatever company."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mocokit.data.store import open_store
from mocokit.errors import UserError
from mocokit.evaluation.features import extract
from mocokit.model.encoder import Encoder, encoder_spec
from tests.encoders import SIZES, assert_close, spec
from tests.helpers import encode, noise, png16

# The file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_gives_the_same_features(channels, rgb, gray, tmp_path):
    encoder = rgb if channels == 3 else gray
    arrays = [noise(i, *size, channels) for i, size in enumerate(SIZES)]  # [H, W] or [H, W, 3]
    paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        path.write_bytes(encode(array))
    deep = [torch.from_numpy(a.reshape(*a.shape[:2], channels)).permute(2, 0, 1) for a in arrays]  # [C, H, W]
    expected = encoder.embed(paths)
    assert expected.shape == (len(SIZES), encoder.dim)
    assert expected.dtype == torch.float32
    assert expected.std(dim=0).max() > 1e-3  # or equality would say nothing
    for images in (map(str, paths), [Image.open(path) for path in paths], arrays, deep):
        assert_close(encoder.embed(images), expected)
    for i in (1, 2):  # one image alone
        for image in (paths[i], str(paths[i]), Image.open(paths[i]), arrays[i], deep[i]):
            assert_close(encoder.embed(image), expected[i : i + 1])
    same_size = [0, -1]
    batch = np.stack([arrays[i] for i in same_size]).reshape(2, 24, 24, channels)  # [N, H, W, C]
    assert_close(encoder.embed(batch), expected[same_size])
    assert_close(encoder.embed(torch.from_numpy(batch).permute(0, 3, 1, 2)), expected[same_size])


def test_what_goes_on_from_an_encoder_has_its_preparation_but_the_range_of_its_own_images():
    start = replace(spec(3), mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4), crop=0.9, interpolation="bicubic")
    config = SimpleNamespace(image_size=40, zero_init_last=False, backbone="another")
    made = encoder_spec(SimpleNamespace(channels=3, intensity_range=(5.0, 900.0)), config, start)
    assert made == replace(start, image_size=40, intensity_range=(5.0, 900.0), zero_init_last=False)
    gray = encoder_spec(SimpleNamespace(channels=1, intensity_range=None), config, start)
    assert (gray.mean, gray.std) == (pytest.approx((0.3,)), pytest.approx((0.3,)))
    assert (gray.channels, gray.intensity_range, gray.crop) == (1, None, 0.9)


def test_unusual_containers(rgb, tmp_path):
    array = noise(0, 24, 24)
    (tmp_path / "a.png").write_bytes(encode(array))
    expected = rgb.embed(array)
    assert_close(rgb.embed(np.array([str(tmp_path / "a.png")])), expected)
    assert_close(rgb.embed(np.array([tmp_path / "a.png"], dtype=object)), expected)
    halves = torch.from_numpy(array).permute(2, 0, 1).div(255).bfloat16()
    assert_close(rgb.embed(halves), rgb.embed(halves.float()))


def test_a_picture_that_was_opened_keeps_its_size(rgb, tmp_path):
    """A JPEG that is read for something small may be read smaller, which its owner would notice."""
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(noise(0, 600, 800), "JPEG"))
    image = Image.open(path)
    features = rgb.embed([image])
    assert image.size == (800, 600)
    torch.testing.assert_close(rgb.embed([path]), features, rtol=0.1, atol=0.05)


@settings(max_examples=10)
@given(st.integers(1, 9), st.permutations(range(len(SIZES))))
def test_features_depend_on_neither_batch_size_nor_company(batch_size, order):
    encoder = Encoder.create(spec(3)).eval()
    arrays = [noise(i, *size) for i, size in enumerate(SIZES)]
    expected = torch.cat([encoder.embed(array) for array in arrays])
    assert_close(encoder.embed([arrays[i] for i in order], batch_size=batch_size), expected[list(order)])


@pytest.mark.parametrize("kind", ["rgb", "gray", "16 bit"])
def test_embed_equals_evaluation(kind, tmp_path):
    """The path from file to feature in use is the one the encoder was judged on."""
    for i, size in enumerate(SIZES):
        if kind == "16 bit":
            deep = np.random.default_rng(i).integers(500, 3000, (*size, 1), dtype=np.uint16)
            name, content = f"{i}.png", png16(deep)
        else:
            name = f"{i}.jpg" if i % 2 else f"{i}.png"
            content = encode(noise(i, *size, 3 if kind == "rgb" else 1), "JPEG" if i % 2 else "PNG")
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    store = open_store(str(tmp_path / "data"), image_size=24, max_skipped=0)
    assert (store.intensity_range is not None) == (kind == "16 bit")
    encoder = Encoder.create(spec(store.channels, store.intensity_range)).eval()
    images = store.splits["train"]
    stored = extract(encoder, images)
    for batch_size in (1, 3, 100):
        assert_close(encoder.embed([tmp_path / "data" / name for name in images.names], batch_size), stored)


def test_deep_images_are_scaled_by_the_range_of_the_run():
    """The same scene under half the light stays darker; each image's own range would make them equal."""
    bright = np.random.default_rng(0).integers(0, 4000, (24, 24)).astype(np.uint16)
    known = Encoder.create(spec(1, (0.0, 4000.0))).eval()
    in_eight_bits = np.rint(bright / 4000 * 255).astype(np.uint8)
    torch.testing.assert_close(known.embed(bright), known.embed(in_eight_bits), rtol=0, atol=1e-5)
    assert not torch.allclose(known.embed(bright), known.embed(bright // 2), atol=1e-3)
    unknown = Encoder.create(spec(1)).eval()
    assert not torch.allclose(unknown.embed(bright), unknown.embed(bright * 16), atol=1e-3)  # white is 65535


def test_gray_and_colour_convert_into_each_other(rgb, gray):
    colour, plain = noise(1, 20, 24), noise(2, 20, 24, 1)
    assert_close(rgb.embed(plain), rgb.embed(np.stack([plain] * 3, axis=2)))
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    torch.testing.assert_close(gray.embed(colour), gray.embed(luma), rtol=0, atol=0.05)  # Pillow rounds otherwise
    assert_close(gray.embed(np.stack([plain] * 3, axis=2)), gray.embed(plain))


def test_embed_leaves_the_mode_and_no_gradient(rgb):
    encoder = Encoder.create(spec(3)).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    features = encoder.embed(noise(0))
    assert encoder.training
    assert not features.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert rgb.embed([]).shape == (0, rgb.dim)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("missing.png", "missing.png: No such file"),
        (np.zeros((8, 8, 5), np.uint8), "5 channels where the encoder takes 3"),
        (np.zeros((8, 0, 3), np.uint8), "expected one image"),
        (np.zeros(8, np.uint8), "expected one image"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "expected one image"),
        ([np.full((8, 8), np.nan)], "only pixels without data"),
        ([np.full((8, 8), np.inf)], "infinite or not a number"),
        ([None], "expected one image"),
        ([3], "expected one image"),
    ],
)
def test_what_is_no_image_is_one_clear_line(image, words, rgb):
    with pytest.raises(UserError, match=words) as caught:
        rgb.embed(image)
    assert "\n" not in str(caught.value)


def test_pixels_without_data_get_the_least_value_as_in_files():
    encoder = Encoder.create(spec(1, (0.0, 100.0))).eval()
    whole = np.random.default_rng(0).uniform(1, 100, (20, 20)).astype(np.float32)
    whole[3, 4], whole[5, 6] = 0.5, 0.5
    missing = whole.copy()
    missing[3, 4] = np.nan
    torch.testing.assert_close(encoder.embed([missing]), encoder.embed([whole]), rtol=0, atol=0)


def test_a_picture_has_the_same_features_in_every_container(rgb, tmp_path):
    picture = noise(0, 20, 20)
    deep = picture.astype(np.uint16) * 257
    (tmp_path / "8.png").write_bytes(encode(picture))
    (tmp_path / "16.png").write_bytes(png16(deep))
    unit = picture.astype(np.float32) / 255
    tensor = torch.from_numpy(unit).permute(2, 0, 1)
    same = [picture, deep, unit, unit.astype(np.float64), tensor, tmp_path / "8.png", tmp_path / "16.png"]
    features = rgb.embed(same)
    torch.testing.assert_close(features, features[:1].expand_as(features), atol=1e-4, rtol=1e-4)


def test_floats_that_resizing_rounded_above_white_are_white(rgb):
    white = np.ones((20, 20, 3), np.float32)
    torch.testing.assert_close(rgb.embed([white * np.float32(1.0000005)]), rgb.embed([white]), rtol=0, atol=0)


def test_an_image_of_several_that_cannot_be_used_is_numbered(rgb):
    images = torch.rand(5, 3, 8, 8)
    images[3] += 1
    with pytest.raises(UserError, match="image 3, a Tensor: float32 from 1"):
        rgb.embed(images, batch_size=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_give_features_in_float32(dtype):
    encoder = Encoder.create(spec(3)).eval()
    encoder.classifier, encoder.classes = torch.nn.Linear(encoder.dim, 2), ("a", "b")
    images = [noise(seed) for seed in range(3)]
    expected, probabilities = encoder.embed(images), encoder.classify(images)
    found = encoder.to(dtype).embed(images)
    assert found.dtype == encoder.classify(images).dtype == torch.float32
    tolerance = 0.02 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(encoder.classify(images), probabilities, rtol=0, atol=0.05)
    torch.testing.assert_close(encoder.for_evaluation().embed(images), found, rtol=0, atol=tolerance)


def test_a_backbone_without_weights():
    backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    backbone.num_features = 3
    black, white = Encoder(backbone, spec(3)).embed([np.full((8, 8, 3), value, np.uint8) for value in (0, 255)])
    assert bool((black < white).all())


def test_numbers_that_can_mean_several_things_are_refused(rgb):
    for image in (noise(0).astype(np.float32), noise(0).astype(np.int64), noise(0).astype(np.float32) / 255 - 0.5):
        with pytest.raises(UserError, match="0 to 1 "):
            rgb.embed(image)


def test_a_broken_file_among_good_ones_is_named(rgb, tmp_path):
    (tmp_path / "good.png").write_bytes(encode(noise(0)))
    (tmp_path / "bad.png").write_bytes(encode(noise(0))[:-60])
    with pytest.raises(UserError, match=r"bad\.png: "):
        rgb.embed([tmp_path / "good.png", tmp_path / "bad.png"])


# Damaged and hostile files -------------------------------------------------------------------------------
