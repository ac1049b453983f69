"""What a notebook looks at: images, views, metrics."""

import csv

import numpy as np
import pytest

import mocokit
from tests.helpers import encode, noise
from tests.tiny_runs import TinyRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images that encoders take at their own size, each of another size."""
    folder = tmp_path_factory.mktemp("images") / "class"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02d}.png").write_bytes(encode(noise(i, 16 + i % 3, 16 + i % 5)))
    return folder.parent


def test_images_are_the_pixels_of_the_files(folder):
    images = mocokit.open_images(str(folder), image_size=16)
    assert [name.split("/")[-1] for name in images.names] == [f"{i:02d}.png" for i in range(12)]
    for i in (0, 4, -1):
        expected = noise(i % 12, 16 + i % 12 % 3, 16 + i % 12 % 5)
        np.testing.assert_array_equal(images[i], expected)
    assert len(list(images)) == len(images) == 12
    assert all(np.array_equal(image, images[i]) for i, image in enumerate(images))
    with pytest.raises(TypeError, match="slice"):
        images[2:4]
    with pytest.raises(IndexError):
        images[12]


def test_labels_limit_and_splits():
    images = mocokit.open_images("digits", limit=50)
    assert (len(images), images.labels.shape, images.label_names) == (50, (50,), tuple("0123456789"))
    assert (images[0].shape, images[0].dtype) == ((8, 8), np.uint8)
    assert len(mocokit.open_images("digits", split="test")) == 359
    with pytest.raises(mocokit.UserError, match="no split 'val'; choose one of train, test"):
        mocokit.open_images("digits", split="val")


def test_views_differ_and_follow_the_options(folder):
    originals, first, second = mocokit.draw_views(str(folder), count=5, image_size=16, crop_min=0.3)
    assert len(originals) == 5
    assert first.shape == second.shape == (5, 16, 16, 3)
    assert first.dtype == np.uint8
    assert (first != second).any(axis=(1, 2, 3)).all()
    again = mocokit.draw_views(str(folder), count=5, image_size=16, crop_min=0.3)
    np.testing.assert_array_equal(again[1], first)
    other = mocokit.draw_views(str(folder), count=5, image_size=16, crop_min=0.3, seed=1)
    assert (other[1] != first).any()


def test_views_are_of_the_images_that_pretraining_takes(folder, tmp_path):
    """Whatever option says which they are: here by name, by a table and by size."""
    for name, pixels in {"monday": noise(1, 16, 16), "friday": noise(2, 16, 16)}.items():
        (tmp_path / name).mkdir()
        for i in range(8):
            (tmp_path / name / f"{i}.png").write_bytes(encode(pixels))
    shown, *_ = mocokit.draw_views(str(tmp_path), count=8, image_size=16, train="monday", test="friday")
    assert len(shown) == 8
    assert all(np.array_equal(image, noise(1, 16, 16)) for image in shown)
    table = tmp_path / "labels.csv"
    rows = [f"{day}/{i}.png,a,{split}" for day, split in (("monday", "test"), ("friday", "train")) for i in range(8)]
    table.write_text("\n".join(["image,label,split", *rows]))
    shown, *_ = mocokit.draw_views(str(tmp_path), count=8, image_size=16, labels=str(table))
    assert len(shown) == 8
    assert all(np.array_equal(image, noise(2, 16, 16)) for image in shown)
    with pytest.raises(mocokit.UserError, match="--max-pixels"):
        mocokit.draw_views(str(folder), image_size=16, max_pixels=9)


def test_a_path_is_a_name_of_images_too(folder):
    assert mocokit.open_images(folder, image_size=16).names == mocokit.open_images(str(folder), image_size=16).names
    assert len(mocokit.draw_views(folder, count=2, image_size=16)[0]) == 2


def test_views_without_any_change_are_the_images():
    images = mocokit.open_images("digits", image_size=8, limit=20)
    unchanged = {"jitter_strength": 0.0, "gray_p": 0.0, "blur_p": 0.0, "flip_p": 0.0, "crop_min": 1.0}
    originals, first, second = mocokit.draw_views(images, count=20, image_size=8, **unchanged)
    same = [i for i in range(20) if np.array_equal(first[i], originals[i])]
    assert same  # those whose box has the image's shape
    assert first.shape == second.shape == (20, 8, 8)


def test_a_wrong_option_is_told():
    with pytest.raises(mocokit.UserError, match="did you mean 'crop_min'"):
        mocokit.draw_views("digits", crop_minn=0.5)
    with pytest.raises(mocokit.UserError, match="no such recipe"):
        mocokit.draw_views("digits", recipe="moco-v9")


@pytest.mark.parametrize(("name", "value"), [("image_size", -3), ("limit", -5), ("limit", 0), ("tiles", -1)])
def test_a_number_out_of_range_is_told(name, value):
    with pytest.raises(mocokit.UserError, match=f"--{name.replace('_', '-')}: "):
        mocokit.open_images("digits", **{name: value})


def test_images_that_all_test_have_no_views(tmp_path):
    (tmp_path / "test").mkdir()
    for i in range(3):
        (tmp_path / "test" / f"{i}.png").write_bytes(encode(noise(i, 16, 16)))
    images = mocokit.open_images(tmp_path, split="test", image_size=16)
    assert len(images) == 3
    for data in (tmp_path, images):
        with pytest.raises(mocokit.UserError, match="has no images to train on"):
            mocokit.draw_views(data, image_size=16)


def test_a_recipe_that_needs_more_images_than_there_are():
    _, first, _ = mocokit.draw_views("digits", count=3, limit=20, recipe="moco-v2-cifar10")
    assert first.shape == (3, 32, 32)


def test_metrics_are_the_columns_of_the_file(tiny_run: TinyRun, tmp_path):
    metrics = mocokit.read_metrics(tiny_run.path)
    with (tiny_run.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(metrics) == list(rows[0])
    for name, column in metrics.items():
        assert column.dtype == np.float64
        expected = [float(row[name]) if row[name] else np.nan for row in rows]
        np.testing.assert_array_equal(column, expected)
    with pytest.raises(mocokit.UserError, match="no metrics here"):
        mocokit.read_metrics(tmp_path)


def test_tiles_are_looked_at(folder):
    images = mocokit.open_images(str(folder), image_size=16, tiles=16)
    assert images.names[0].endswith("#r0c0")
    originals, first, _ = mocokit.draw_views(str(folder), count=3, image_size=16, tiles=16)
    np.testing.assert_array_equal(originals[2], images[2])
    assert first.shape[:3] == (3, 16, 16)
