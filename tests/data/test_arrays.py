"""Images in .npy and .npz files: what they hold comes out, and what is wrong with them is one clear line."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.lib import format as npy

from mocokit.data.arrays import ImageListSource, channels_first, pixels
from mocokit.data.decode import decode
from mocokit.data.pillow import BadImage
from mocokit.data.sources import open_source
from mocokit.data.store import Store, TooManySkipped, open_store
from mocokit.errors import UserError
from tests.helpers import encode, noise


def store_of(path: Path, **options: object) -> Store:
    return open_store(str(path), **{"image_size": 8, **options})  # type: ignore[arg-type]


def planes(images: np.ndarray) -> np.ndarray:
    """[N, H, W] or [N, H, W, C] as [N, C, H, W]."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def saved(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(path)).read_index()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# What they hold ------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=arrays_of.arrays(
        dtype=st.sampled_from(["u1", "<u2", ">u2", "<i2", "?", "<f2", "<f4", ">f4", "<f8"]),
        shape=st.tuples(*[st.integers(1, 9)] * 3) | st.tuples(*[st.integers(1, 7)] * 4),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": 0, "max_value": 1},
        fill=st.nothing(),
    ),
    kind=st.sampled_from(["npy", "npz", "compressed"]),
    fortran=st.booleans(),
)
def test_every_image_comes_out_as_it_is(tmp_path: Path, images: np.ndarray, kind: str, fortran: bool) -> None:
    """Of any dtype, byte order and memory order, from any file: its own numbers, as uint8 or float32."""
    assume(not channels_first(images.shape))
    images = np.asfortranarray(images) if fortran else images
    path = tmp_path / ("x.npy" if kind == "npy" else "x.npz")
    {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[kind](path, images)
    source = open_source(str(path))
    image_index = source.read_index()
    assert image_index.splits["train"].tolist() == list(range(len(images)))
    assert len(set(image_index.names)) == len(images)
    for index, expected in enumerate(planes(images)):
        read = source.read(index)
        assert read.dtype == (np.uint8 if images.dtype == np.uint8 else np.float32)
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected.astype(read.dtype))


@pytest.mark.parametrize("channels", [None, 1, 3, 2, 7])
def test_bytes_reach_the_store_unchanged(tmp_path: Path, channels: int | None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 12, *[channels] * bool(channels)), np.uint8)
    np.save(tmp_path / "scans.npy", images)
    store = store_of(tmp_path / "scans.npy")
    assert (store.name, store.channels, store.label_names) == ("scans", channels or 1, None)
    assert store.intensity_range is None
    np.testing.assert_array_equal(store.splits["train"].batch(range(6)), planes(images))


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int16", "float64", "bool"])
def test_deep_images_share_one_range(tmp_path: Path, dtype: str) -> None:
    """The darkest pixel of all images becomes 0, the brightest 255, the others lie between in proportion."""
    images = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 30000, (5, 6, 4)).astype(dtype)
    np.save(tmp_path / "images.npy", images)
    store = store_of(tmp_path / "images.npy")
    low, high = float(images.min()), float(images.max())
    assert store.intensity_range == (None if dtype == "bool" else (low, high))  # from 0 to 1 they mean that
    expected = np.rint((images.astype(np.float64) - low) * 255 / (high - low))
    np.testing.assert_array_equal(store.splits["train"].batch(range(5))[:, 0], expected)


def test_deep_array_equals_deep_files(tmp_path: Path) -> None:
    """A uint16 array gives the store that the same images as 16-bit PNG files give."""
    from tests.helpers import png16

    images = np.random.default_rng(0).integers(0, 4000, (5, 20, 30, 1)).astype(np.uint16)
    (tmp_path / "files").mkdir()
    for row, image in enumerate(images):
        (tmp_path / "files" / f"{row}.png").write_bytes(png16(image))
    np.save(tmp_path / "images.npy", images)
    ours, files = (store_of(tmp_path / name) for name in ("images.npy", "files"))
    assert ours.intensity_range == files.intensity_range
    assert ours.fingerprint == files.fingerprint


def test_large_images_are_shrunk(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 64, 40), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    store = store_of(tmp_path / "images.npy")
    assert store.splits["train"].sizes.tolist() == [[16, 10]] * 3


def test_pixels_without_data_are_filled_as_in_files(tmp_path: Path) -> None:
    import tifffile

    images = np.random.default_rng(0).random((4, 6, 5)).astype(np.float32) * 1000
    images[1, :2], images[2, 3, 3] = np.nan, np.nan
    (tmp_path / "files").mkdir()
    for row, image in enumerate(images):
        tifffile.imwrite(tmp_path / "files" / f"{row}.tif", image)
    np.save(tmp_path / "images.npy", images)
    ours, files = (store_of(tmp_path / name) for name in ("images.npy", "files"))
    assert (ours.fingerprint, ours.intensity_range) == (files.fingerprint, files.intensity_range)
    expected = "2 images with pixels without data, which get the least value of their image; the first is"
    assert [f"{expected} 000001" in ours.notes, f"{expected} 1.tif" in files.notes] == [True, True]


def test_images_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((20, 5, 5))
    images[3], images[7, 1, 1], images[8, 1, 1] = np.nan, np.inf, 1e300
    np.save(tmp_path / "images.npy", images)
    store = store_of(tmp_path / "images.npy", max_skipped=0.2)
    assert [(name, reason[:20]) for name, reason in store.skipped] == [
        ("000003", "only pixels without "),
        ("000007", "pixels that are infi"),
        ("000008", "pixels that are infi"),
    ]
    with pytest.raises(TooManySkipped, match="000003"):
        store_of(tmp_path / "images.npy", max_skipped=0)


# Labels and splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[3, 3, 10, 5, 3, 10], list("bbcabc"), [True, False] * 3])
@pytest.mark.parametrize("column", [False, True])
def test_labels(tmp_path: Path, labels: list[object], column: bool) -> None:
    wanted = np.array(labels)
    path = saved(tmp_path / "x.npz", images=noise(0, 6, 8, 8), labels=wanted[:, None] if column else wanted)
    store = store_of(path)
    assert store.label_names == tuple(str(value) for value in np.unique(wanted))
    assert store.splits["train"].labels is not None
    named = [store.label_names[value] for value in store.splits["train"].labels]
    assert named == [str(value) for value in labels]


@pytest.mark.parametrize(("images", "labels"), [("{}_images", "{}_labels"), ("x_{}", "y_{}")])
def test_splits_as_in_medmnist_and_keras(tmp_path: Path, images: str, labels: str) -> None:
    counts = {"train": 7, "val": 2, "test": 4}
    pictures = {split: noise(count, count * 6, 5).reshape(count, 6, 5, 3) for split, count in counts.items()}
    classes = {split: np.arange(count)[:, None] % 2 + 4 for split, count in counts.items()}
    arrays = {images.format(s): pictures[s] for s in counts} | {labels.format(s): classes[s] for s in counts}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    store = store_of(tmp_path / "x.npz")
    assert {split: len(images) for split, images in store.splits.items()} == counts
    assert store.label_names == ("4", "5")
    for split, part in store.splits.items():
        np.testing.assert_array_equal(part.batch(range(len(part))), planes(pictures[split]))
        assert part.labels is not None
        assert part.labels.tolist() == (classes[split].ravel() - 4).tolist()
    assert store.splits["test"].names[-1] == "test/000003"


@pytest.mark.parametrize("labels", [np.random.rand(6), np.ones((6, 14), int), np.full(6, 2)])
def test_figures_and_several_labels_are_no_classes(tmp_path: Path, labels: np.ndarray) -> None:
    path = saved(tmp_path / "x.npz", images=noise(0, 6, 8, 8), labels=labels)
    store = store_of(path)
    assert store.label_names is None
    (note,) = store.notes
    assert note == "all labels are 2: a single class is none" or note.startswith(f"labels {labels.dtype} [6")


def test_arrays_that_are_not_used_are_told(tmp_path: Path) -> None:
    images = np.zeros((8, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, label=np.arange(8), test_images=images[:2], x_valid=images[:3])
    notes = open_source(str(tmp_path / "a.npz")).read_index().notes
    assert "arrays not used: images uint8 [8, 8, 8], label int64 [8], x_valid uint8 [3, 8, 8]; usual names" in notes[-1]
    np.savez(tmp_path / "b.npz", images=images, labels=np.arange(8))
    assert not open_source(str(tmp_path / "b.npz")).read_index().notes


def test_some_labels_are_missing(tmp_path: Path) -> None:
    images = {"x_train": noise(0, 6, 8, 8), "x_test": noise(1, 2, 8, 8)}
    store = store_of(saved(tmp_path / "x.npz", **images, y_train=np.array([2.0, 4, 2, 4, -1, np.nan])))
    assert store.label_names == ("2", "4")
    assert store.splits["train"].labels is not None
    assert store.splits["train"].labels.tolist() == [0, 1, 0, 1, -1, -1]
    note = "4 of 8 images have no label, first train/000004: left out of kNN, probe and fine-tuning"
    assert store.label_notes == (note,)


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, noise(0, 6, 8, 8))
    before = store_of(path)
    assert store_of(path).from_cache
    np.save(path, noise(1, 6, 8, 8))
    after = store_of(path)
    assert not after.from_cache
    assert after.fingerprint != before.fingerprint


def test_arrays_leave_nothing_else_in_the_cache(tmp_path: Path) -> None:
    store = store_of(saved(tmp_path / "x.npz", images=noise(0, 6, 8, 8)))
    files = {path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert {path.parent for path in files} == {store.path}


# What is refused -----------------------------------------------------------------------------------------


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    """A pickle inside an array file would run: this one would leave a file behind."""

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "exploded",)

    bomb = np.array([Bomb()] * 10, dtype=object)
    for name, array in (("a.npy", bomb), ("b.npy", bomb.reshape(10, 1, 1))):
        np.save(tmp_path / name, array, allow_pickle=True)
        assert "objects" in refusal(tmp_path / name)
    assert "object" in refusal(saved(tmp_path / "c.npz", images=bomb.reshape(10, 1, 1)))
    assert "save array.astype(str)" in refusal(saved(tmp_path / "d.npz", images=noise(0, 10), labels=bomb))
    (tmp_path / "e.npy").write_bytes(pickle.dumps(Bomb()))
    refusal(tmp_path / "e.npy")
    assert not (tmp_path / "exploded").exists()
    # Beside the images they hurt nobody.
    assert len(store_of(saved(tmp_path / "f.npz", images=noise(0, 10), info=bomb)).splits["train"]) == 10
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"features": np.zeros((10, 64))}, "features float64 [10, 64]"),
        ({}, "nothing"),
        ({"a": np.zeros((2, 4, 4)), "b": np.zeros((2, 4, 4))}, "several arrays"),
        ({"images": np.zeros((10, 64)), "masks": np.zeros((10, 8, 8))}, "images is float64 [10, 64]"),
        ({"images": np.zeros((0, 8, 8))}, "[0, 8, 8]"),
        ({"images": np.zeros((4, 8, 8), complex)}, "complex128"),
        ({"images": np.zeros((4, 8, 8), [("r", "u1"), ("g", "u1")])}, "[('r', 'u1'), ('g', 'u1')]"),
        ({"images": np.zeros((4, 3, 32, 32))}, "numpy.moveaxis(array, 1, -1)"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.zeros(5, int)}, "labels is int64 [5]"),
        ({"train_images": np.zeros((4, 8, 8)), "test_images": np.zeros(7)}, "test_images is float64 [7]"),
    ],
)
def test_what_holds_no_images(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    assert said in refusal(saved(tmp_path / "x.npz", **arrays))


def test_an_array_that_holds_no_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((10, 64)))
    assert "float64 [10, 64]" in refusal(tmp_path / "x.npy")


def header(shape: object, descr: str = "|u1") -> bytes:
    """The start of an .npy file that claims to hold an array of ``shape``."""
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "shape", [(10**12, 8, 8), (2**32, 2**32, 2), (10, -8, 8), (10, 8, 9), (True, 8, 8), (2**100, 1, 1)]
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_header_that_lies(tmp_path: Path, shape: object, zipped: bool) -> None:
    content = header(shape) + bytes(640)
    if zipped:
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as packed:
            packed.writestr("images.npy", content)
    else:
        (tmp_path / "x.npy").write_bytes(content)
    refusal(tmp_path / ("x.npz" if zipped else "x.npy"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["npy", "npz", "compressed"]))
def test_damaged_files_give_one_line_or_images(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    """Cut off or with bytes changed anywhere: never another error, never numbers from beyond the file."""
    path = tmp_path / ("x.npy" if kind == "npy" else "x.npz")
    {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[kind](path, noise(0, 4, 5))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    source = open_source(str(path))
    message = str(path)
    try:
        for index in range(len(source.read_index().names)):
            source.read(index)
    except UserError as error:
        message = str(error)
    except BadImage:
        pass
    assert str(path) in message
    assert "\n" not in message


def test_a_damaged_member_is_found_out_by_its_checksum(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", images=noise(0, 40, 40)[None])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "CRC" in refusal(path)


def test_a_file_under_a_wrong_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", noise(0))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    assert "is it damaged or misnamed?" in refusal(tmp_path / "x.npz")


# Images at hand ------------------------------------------------------------------------------------------


def test_images_in_memory(tmp_path: Path) -> None:
    """Arrays, PIL images and paths, each of its own size, decoded as files are."""
    from PIL import Image

    (tmp_path / "a.png").write_bytes(encode(noise(0)))
    picture = Image.fromarray(noise(1, 5, 7))
    source = ImageListSource([tmp_path / "a.png", picture, noise(2, 4, 3), str(tmp_path / "none.png")])
    assert source.read_index().names == [str(tmp_path / "a.png"), "image 1", "image 2", str(tmp_path / "none.png")]
    np.testing.assert_array_equal(decode(source.read(0)), noise(0).transpose(2, 0, 1))  # type: ignore[arg-type]
    np.testing.assert_array_equal(source.read(1), noise(1, 5, 7).transpose(2, 0, 1))
    np.testing.assert_array_equal(source.read(2), noise(2, 4, 3).transpose(2, 0, 1))
    with pytest.raises(BadImage, match="No such file"):
        source.read(3)


@pytest.mark.parametrize(
    "image", [np.zeros(4), np.zeros((2, 0)), np.zeros((2, 2), complex), np.full((2, 2), "a"), np.zeros([2] * 4)]
)
def test_what_is_no_image(image: np.ndarray) -> None:
    with pytest.raises(BadImage, match=r"where .H, W. or .H, W, C. is expected"):
        pixels(image)


def test_one_picture_is_not_taken_for_many(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", noise(0, 64, 64))
    with pytest.raises(UserError, match=r"\[64, 64, 3\] seems to be one picture.* save array\[None\]"):
        open_source(str(tmp_path / "one.npy")).read_index()
