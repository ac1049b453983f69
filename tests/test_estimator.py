"""MoCoEncoder obeys scikit-learn's rules, and its fit is `mocokit.pretrain`."""

import dataclasses
import doctest
import os
import pickle
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import Memory
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import mocokit.estimator
from mocokit import MoCoEncoder, load, pretrain
from tests.helpers import encode

SMALL = {"backbone": "resnet18_narrow", "image_size": 8, "steps": 2, "batch_size": 8, "device": "cpu"}


def small(**options: object) -> MoCoEncoder:
    return MoCoEncoder(**{**SMALL, **options})  # type: ignore[arg-type]


def pictures(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


# scikit-learn's rules ------------------------------------------------------------------------------------


def test_check_estimator():
    """All of scikit-learn's checks, none expected to fail; array libraries other than NumPy are not asked for."""
    results = check_estimator(small())
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert len(results) > 40
    assert failed.keys() <= {"check_array_api_input"}


def test_the_example_in_the_docs():
    failures, tests = doctest.testmod(mocokit.estimator)
    assert failures == 0
    assert tests > 5


def test_pipeline_grid_search_and_frames():
    """Parameters are found by name, y is passed by, features have names, and clones start anew."""
    X, y = pictures(36, 8, 8, 3), np.arange(36) % 2
    X[y == 1] //= 8  # one class is darker
    pipeline = make_pipeline(small(), LogisticRegression()).set_output(transform="pandas")
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.8
    search = GridSearchCV(pipeline, {"mocoencoder__batch_size": np.array([8, 16])}, cv=2).fit(X, y)
    best = search.best_estimator_
    frame = best[:-1].transform(X)
    assert list(frame.columns) == list(best[0].get_feature_names_out())
    assert frame.columns[0] == "mocoencoder0"
    assert frame.shape == (36, best[0].encoder_.dim)
    with pytest.raises(NotFittedError):
        clone(best[0]).transform(X)


@pytest.fixture
def fits(monkeypatch):
    """The numbers of images that were learned from, a fit each."""
    counts, train = [], mocokit.estimator.train

    def counting(task, images, *args, **kwargs):
        counts.append(len(images))
        return train(task, images, *args, **kwargs)

    monkeypatch.setattr(mocokit.estimator, "train", counting)
    return counts


@pytest.mark.parametrize("kind", [str, Path, lambda path: Memory(path, verbose=0)], ids=["str", "Path", "Memory"])
def test_a_search_over_the_classifier_pretrains_each_fold_once(kind, tmp_path, fits):
    """And finds the same as without the memory."""
    X, y = pictures(36, 8, 8, 3), np.arange(36) % 2
    found = []
    for memory, expected in ((None, 7), (kind(tmp_path / "kept"), 3), (kind(tmp_path / "kept"), 0)):
        fits.clear()
        pipeline = make_pipeline(small(memory=memory), LogisticRegression())
        search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 1, 100]}, cv=2).fit(X, y)
        found.append((search.cv_results_["mean_test_score"].tolist(), search.best_estimator_[0].transform(X).tolist()))
        assert len(fits) == expected
    assert found[0] == found[1] == found[2]


def test_only_an_equal_fit_is_taken_from_the_memory(tmp_path, fits):
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        path.write_bytes(encode(pictures(8, 8, 3, seed=number)))
    recipe, arrays = tmp_path / "mine.yaml", list(pictures(9, 8, 8, 3))
    recipe.write_text("temperature: 0.3\n")

    def fit(X, **options) -> int:
        """How often it trains."""
        fits.clear()
        estimator = small(memory=str(tmp_path / "kept"), **options)
        again = clone(estimator).fit(X)
        assert again.get_params() == estimator.get_params()
        assert np.isfinite(again.transform(X)).all()
        return len(fits)

    assert [fit(paths), fit(paths), fit(arrays), fit(arrays)] == [1, 0, 1, 0]
    paths[0].write_bytes(encode(pictures(8, 8, 3, seed=99)))  # another image in the same place
    arrays[0] = arrays[0] ^ 1
    assert [fit(paths), fit(arrays), fit(arrays)] == [1, 1, 0]
    assert [fit(arrays, random_state=1), fit(arrays, steps=3), fit(arrays, verbose=True)] == [1, 1, 0]
    assert [fit(arrays, random_state=None), fit(arrays, random_state=None)] == [1, 1]
    assert [fit(arrays, recipe=str(recipe)), fit(arrays, recipe=str(recipe))] == [1, 0]
    recipe.write_text("temperature: 0.2\n")
    assert fit(arrays, recipe=str(recipe)) == 1
    listed = [Image.fromarray(image) for image in arrays]
    assert [fit(listed), fit([image.copy() for image in listed])] == [1, 0]


@pytest.mark.slow
def test_search_in_parallel_processes():
    X, y = pictures(32, 8, 8), np.arange(32) % 2
    search = [
        GridSearchCV(make_pipeline(small(), LogisticRegression()), {"mocoencoder__steps": [1, 3]}, cv=2, n_jobs=n)
        for n in (1, 2)
    ]
    one, two = (s.fit(X, y).cv_results_["mean_test_score"] for s in search)
    np.testing.assert_array_equal(one, two)


def test_a_pickle_needs_no_run_directory_and_holds_no_images():
    X = pictures(400, 32, 32, 3)
    encoder = small().fit(X)
    stored = pickle.dumps(encoder)
    assert abs(len(stored) - len(pickle.dumps(small().fit(X[:16])))) < X.nbytes / 1000
    np.testing.assert_array_equal(pickle.loads(stored).transform(X[:5]), encoder.transform(X[:5]))


# The same as pretraining ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_fit_is_pretrain_and_transform_is_embed(tmp_path: Path, dtype: str):
    """The same images, options and seed give the same weights as the command line, bit for bit."""
    X = pictures(40, 12, 10, 3, dtype=dtype)
    encoder = small(random_state=7).fit(X)
    np.save(tmp_path / "images.npy", X)
    pretrain(str(tmp_path / "images.npy"), out=str(tmp_path / "run"), seed=7, monitor_every=0, **SMALL)
    same = load(tmp_path / "run")
    for name, weights in same.backbone.state_dict().items():
        assert weights.equal(encoder.encoder_.backbone.state_dict()[name]), name
    np.testing.assert_array_equal(encoder.transform(X), same.embed(X).numpy())
    assert [row["step"] for row in encoder.history_] == [2]
    assert encoder.history_[0]["loss"] > 0


def test_seeds():
    """An int is the seed itself; a generator moves on with each fit."""
    X = pictures(16, 8, 8)
    first, again, other = (small(random_state=seed).fit(X).transform(X) for seed in (np.int64(3), 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    moving = small(random_state=np.random.RandomState(0))
    assert np.abs(moving.fit(X).transform(X) - moving.fit(X).transform(X)).max() > 1e-3


# Images of every kind ------------------------------------------------------------------------------------


def test_arrays_rows_files_and_pictures_are_the_same_images(tmp_path: Path):
    X = pictures(16, 9, 9, 3)
    paths = [tmp_path / f"{row}.png" for row in range(16)]
    for path, image in zip(paths, X, strict=True):
        path.write_bytes(encode(image))
    expected = small().fit(X).transform(X)
    kinds = [paths, [str(path) for path in paths], np.array([str(path) for path in paths]), list(X)]
    kinds.append([Image.fromarray(image) for image in X])
    for images in kinds:
        np.testing.assert_array_equal(small().fit(images).transform(images), expected)
    rows = X.reshape(16, -1)
    by_rows = small(image_shape=(9, 9, 3)).fit(rows)
    np.testing.assert_array_equal(by_rows.transform(rows), expected)
    np.testing.assert_array_equal(by_rows.transform(X), expected)
    assert by_rows.image_shape_ == (9, 9, 3)
    assert by_rows.n_features_in_ == 243
    by_rows.fit(X)
    assert by_rows.image_shape_ is None
    assert not hasattr(by_rows, "n_features_in_")


@pytest.mark.parametrize(("length", "shape"), [(64, (8, 8)), (63, (1, 63)), (2, (1, 2))])
def test_rows_of_unknown_shape(length: int, shape: tuple[int, int]):
    X = pictures(16, length)
    encoder = small().fit(X)
    assert encoder.image_shape_ == shape
    np.testing.assert_array_equal(
        encoder.transform(X), small().fit(X.reshape(16, *shape)).transform(X.reshape(16, *shape))
    )


def test_images_of_many_bands_and_of_different_sizes():
    assert small().fit_transform(pictures(16, 8, 8, 5)).shape == (16, 128)
    images = [pictures(6 + row, 20 - row, seed=row) for row in range(10)]
    features = small().fit_transform(images)
    np.testing.assert_allclose(small().fit(images).transform(images[3:4]), features[3:4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_value_is_equally_bright_in_whatever_company(dtype: str):
    """One image alone, though it is darker than those of fit, gets the features it has among the others."""
    X = pictures(16, 8, 8, dtype=dtype)
    X[3] //= 8
    encoder = small().fit(X)
    np.testing.assert_allclose(encoder.transform(X[3:4]), encoder.transform(X)[3:4], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(encoder.transform(X.astype(float)), encoder.transform(X))


@pytest.mark.parametrize("kind", [np.float32, np.float64, bool, np.int64])
def test_numbers_from_0_to_1_mean_the_same_in_fit_and_transform(kind):
    """As scikit-learn's users scale them: read as 0 to 255 all of them would be black."""
    X = pictures(16, 8, 8) / 255
    X = X.astype(kind) if np.issubdtype(kind, np.floating) else (X > 0.5).astype(kind)
    encoder = small().fit(X)
    assert encoder.encoder_.spec.intensity_range == (0.0, 1.0)
    as_bytes = dataclasses.replace(encoder.encoder_.spec, intensity_range=None)
    expected = encoder.transform(X)
    encoder.encoder_.spec = as_bytes
    np.testing.assert_allclose(encoder.transform(np.rint(X * 255).astype(np.uint8)), expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3


def test_floats_among_bytes_are_from_0_to_1_as_they_were_in_fit():
    X = pictures(16, 8, 8)
    mixed = [x if row % 2 else x / 255 for row, x in enumerate(X)]
    encoder = small().fit(mixed)
    np.testing.assert_allclose(encoder.transform(mixed), encoder.transform(X), rtol=1e-4, atol=1e-5)
    assert np.ptp(encoder.transform(X), axis=0).max() > 1e-3


def test_a_recipe_says_how_to_train_and_not_what(tmp_path: Path):
    recipe, X = tmp_path / "mine.yaml", pictures(32, 8, 8)
    recipe.write_text("limit: 16\n")
    with pytest.raises(ValueError, match="larger than the 16 training images"):
        small(recipe=str(recipe), batch_size=17).fit(X)
    recipe.write_text("weights: timm\ntiles: 4\n")
    with pytest.raises(ValueError, match="weights, tiles can't be used here"):
        small(recipe=str(recipe)).fit(X)


def test_blank_images():
    features = small().fit_transform(np.full((16, 8, 8), 3.5))
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features, features[:1].repeat(16, axis=0), rtol=1e-4, atol=1e-6)


# Manners -------------------------------------------------------------------------------------------------


def test_fit_leaves_nothing_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    for name in ("work", "cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small().fit_transform(pictures(16, 8, 8))
    assert capfd.readouterr() == ("", "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list((tmp_path / "temporary").iterdir())
    small(verbose=True).fit(pictures(16, 8, 8))
    out, err = capfd.readouterr()
    assert out == ""
    assert "step 2/2" in err


def test_interrupt_stops_fit_as_python_would():
    before = signal.getsignal(signal.SIGINT)
    ended = threading.Event()

    def interrupt() -> None:
        """Again, where the first one came in a destructor, in which Python forgets exceptions."""
        wait = 1.0
        while not ended.wait(wait):
            os.kill(os.getpid(), signal.SIGINT)
            wait = 10.0

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        small(steps=100_000).fit(pictures(16, 8, 8))
    ended.set()
    assert time.monotonic() - started < 60
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_in_a_thread_leaves_signals_alone():
    X, found = pictures(16, 8, 8), []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def work() -> None:
        found.append(small().fit_transform(X))
        found.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[1] == handlers
    np.testing.assert_array_equal(found[0], small().fit_transform(X))


@pytest.mark.parametrize(
    ("options", "X", "said"),
    [
        ({}, pictures(7, 8, 8), "at least 8; got n_samples = 7"),
        ({}, pictures(16, 1), "1 feature"),
        ({}, pictures(16, 3, 32, 32), r"numpy.moveaxis\(X, 1, -1\)"),
        ({}, "digits", "Expected 2D array, got scalar"),
        ({}, ["/no/such.png"] * 16, "/no/such.png: cannot be read: No such file"),
        ({}, np.full((16, 8, 8), np.nan), "contains NaN"),
        ({}, np.full((16, 8, 8), 1e300), "image 0: pixels that are infinite"),
        ({}, pictures(16, 16, 3), r"seems to be one picture; give X\[None\]"),
        ({}, list(torch.rand(16, 3, 8, 8)), "image 0: a Tensor, where an array"),
        ({}, [*pictures(15, 8, 8, 3), pictures(8, 8, 2)], "image 15: 2 channels among images with 3"),
        ({"image_shape": (8, 9)}, pictures(16, 64), r"image_shape \(8, 9\) does not fit rows of 64"),
        ({"image_shape": 8}, pictures(16, 64), r"image_shape \(8,\) does not fit"),
        ({"epochs": 1}, pictures(16, 64), "exclude each other"),
        ({"steps": 1.5}, pictures(16, 64), "expected a whole number, got 1.5"),
        ({"backbone": "resnet"}, pictures(16, 64), "resnet"),
        ({"recipe": "moco-v9"}, pictures(16, 64), "no such recipe"),
        ({"batch_size": 17}, pictures(16, 64), "larger than the 16 training images"),
        ({"device": "mps"}, pictures(16, 64), "finds no such device|expected"),
        ({"random_state": -1}, pictures(16, 64), "too small"),
    ],
)
def test_mistakes_are_value_errors(options: dict[str, object], X: object, said: str):
    with pytest.raises(ValueError, match=said):
        small(**options).fit(X)


def test_one_picture_is_not_many():
    encoder = small().fit(pictures(16, 16, 16, 3))
    with pytest.raises(ValueError, match="one picture"):
        encoder.transform(pictures(16, 16, 3))


def test_mistakes_at_transform():
    encoder = small().fit(pictures(16, 8, 8, 2))
    with pytest.raises(ValueError, match="3 channels where the encoder takes 2"):
        encoder.transform(pictures(2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"/no/such.png: No such file"):
        encoder.transform(["/no/such.png"])


def test_a_range_that_is_not_that_of_fit_is_told():
    X = pictures(9, 8, 8, 3)
    of_bytes, of_units = small().fit(X), small().fit(X / 255.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for estimator, images in ((of_bytes, X), (of_bytes, X.astype(float)), (of_units, X / 255.0), (of_units, X)):
            estimator.transform(images)
    with pytest.warns(UserWarning, match=r"X goes up to 1, where those of fit were taken for 0 to 255"):
        of_bytes.transform(X / X.max())
    with pytest.warns(UserWarning, match=r"X goes up to \d+, where those of fit were taken for 0 to 1"):
        of_units.transform(X.astype(float))
