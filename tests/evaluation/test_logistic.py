"""The solver of the fast probe against scikit-learn's LogisticRegression on the same features."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

from mocokit.data.sampler import generator
from mocokit.evaluation.logistic import logistic_path
from mocokit.evaluation.probe import DEFAULT_L2, L2_GRID, choose_l2
from mocokit.evaluation.splits import stratified_folds


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [400, 64] of written digits, some of them constant, and labels."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:400], dtype=torch.float32), torch.tensor(y[:400])


def solve(features, labels, l2, classes=10):
    (classifier,) = logistic_path(features, labels, classes, [l2])
    return classifier


def scikit_learn(features, labels, l2):
    """The same problem, solved tightly."""
    C = 1 / (l2 * len(labels))
    x = StandardScaler().fit_transform(features.double().numpy())
    return LogisticRegression(C=C, tol=1e-9, max_iter=20_000).fit(x, labels.numpy()), x


def test_scipy_computes_on_one_thread_meanwhile(digits, monkeypatch):
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    own = [library for library in libraries if "scipy.libs" in library.filepath]
    fit, seen = LogisticRegression.fit, []

    def watched(*args):
        seen.append([library.get_num_threads() for library in own])
        return fit(*args)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    before = [library.get_num_threads() for library in own]
    try:
        for library in own:
            library.set_num_threads(2)
        solve(*digits, 1.0)
        assert seen == [[1] * len(own)]
        assert [library.get_num_threads() for library in own] == [2] * len(own)
    finally:
        for library, threads in zip(own, before, strict=True):
            library.set_num_threads(threads)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_probabilities_equal_scikit_learn(digits, l2):
    model, x = scikit_learn(*digits, l2)
    found = solve(*digits, l2).scores(digits[0]).softmax(dim=1)
    np.testing.assert_allclose(found, model.predict_proba(x), atol=1e-4)


@pytest.mark.parametrize("l2", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_probabilities_are_exact_to_a_ten_thousandth(load, l2):
    """Against Newton's method; classes that can be separated under a weak penalty need the most iterations."""
    x, y = load(return_X_y=True)
    features, C = torch.tensor(x, dtype=torch.float32), 1 / (l2 * len(y) * (0.5 if y.max() == 1 else 1))
    standardised = StandardScaler().fit_transform(features.double().numpy())
    exact = LogisticRegression(C=C, solver="newton-cg", tol=1e-10, max_iter=1000).fit(standardised, y)
    found = solve(features, torch.tensor(y), l2, classes=int(y.max()) + 1).scores(features).softmax(dim=1)
    np.testing.assert_allclose(found, exact.predict_proba(standardised), rtol=0, atol=1e-4)


def test_two_classes_are_multinomial_too(digits):
    """scikit-learn fits one weight vector to two classes; of two that share the penalty each has half of it."""
    features, labels = digits[0][digits[1] < 2], digits[1][digits[1] < 2]
    model, x = scikit_learn(features, labels, 0.05)
    found = solve(features, labels, 0.1, classes=2).scores(features).softmax(dim=1)
    np.testing.assert_allclose(found, model.predict_proba(x), atol=1e-4)


@pytest.mark.parametrize("l2", [1e-1, 1e-4, 1e-6])
def test_the_gradient_vanishes(digits, l2):
    features, labels = digits
    classifier = solve(features, labels, l2)
    std = features.double().std(dim=0, correction=0)
    x = (features.double() - features.double().mean(dim=0)) / std.clamp(min=1e-9)
    # On standardised features the weights are times std; the bias takes up the means.
    W = classifier.weight.double() * std
    b = classifier.bias.double() + classifier.weight.double() @ features.double().mean(dim=0)
    error = (x @ W.T + b).softmax(dim=1) - torch.eye(10)[labels]
    assert (error.T @ x / len(x) + l2 * W).abs().max() < 2e-6  # the tolerance, and rounding to float32
    assert error.mean(dim=0).abs().max() < 2e-6


def test_a_path_gives_what_each_strength_gives_alone(digits):
    l2s = (1.0, 0.1, 0.01)
    for l2, warm in zip(l2s, logistic_path(*digits, 10, l2s), strict=True):
        cold = solve(*digits, l2)
        found, expected = (c.scores(digits[0]).softmax(dim=1) for c in (warm, cold))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert warm.l2 == l2


def test_the_scale_of_features_does_not_matter(digits):
    features, labels = digits
    scale, shift = torch.logspace(-3, 3, 64), torch.linspace(-1, 1, 64)
    expected = solve(features, labels, 0.01).scores(features)
    found = solve(features * scale + shift, labels, 0.01).scores(features * scale + shift)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_with_one_scale_rotated_features_tell_the_same(digits):
    """Principal components of all variance are such; each by its own deviation they would not be."""
    features, labels = digits
    rotation, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))

    def told(x, one_scale):
        (classifier,) = logistic_path(x, labels, 10, [0.01], one_scale=one_scale)
        return classifier.scores(x).softmax(dim=1)

    expected = told(features, True)
    torch.testing.assert_close(told(features @ rotation, True), expected, atol=2e-3, rtol=0)
    other = told(features @ rotation, False)
    assert (other - expected).abs().max() > 0.02  # ten times as far


def test_constant_features_predict_the_shares_of_the_classes():
    features, labels = torch.full((10, 4), 0.1), torch.tensor([0] * 7 + [2] * 3)
    probabilities = solve(features, labels, 0.1, classes=3).scores(features).softmax(dim=1)
    torch.testing.assert_close(probabilities, torch.tensor([[0.7, 0, 0.3]]).expand(10, 3), atol=1e-5, rtol=0)


def test_a_single_class_is_always_predicted(digits):
    found = solve(digits[0], torch.full((400,), 3), 0.1).scores(digits[0]).softmax(dim=1)
    assert torch.equal(found, torch.eye(10)[[3] * 400])


def test_thousands_of_classes():
    labels = torch.arange(1000).repeat(2)
    features = torch.randn(1000, 24, generator=generator(0, "test")).repeat(2, 1)
    assert (solve(features, labels, 1e-3, classes=5000).scores(features).argmax(dim=1) == labels).all()


@pytest.mark.parametrize("images", [60, 250])
def test_the_strength_is_as_good_as_that_of_an_exhaustive_search(digits, images):
    features, labels = digits[0][:images], digits[1][:images]
    masks = stratified_folds(labels, 3, generator(0, "test"))
    folds = [((features[~mask], labels[~mask]), (features[mask], labels[mask])) for mask in masks]
    losses = []
    for l2 in L2_GRID:
        loss = 0.0
        for (x, y), (val_x, val_y) in folds:
            scores = solve(x, y, l2).scores(val_x).double().softmax(dim=1)
            loss += log_loss(val_y, scores, labels=range(10), normalize=False)
        losses.append(loss)
    chosen = losses[L2_GRID.index(choose_l2(folds, 10))]
    assert chosen <= 1.05 * min(losses)  # near the minimum l2s are alike
    assert min(losses[0], losses[-1]) > 1.1 * min(losses)  # or any choice would do


def test_classes_that_cannot_be_learned_are_not_validated_on(digits):
    features, labels = digits
    known = labels[:200] < 9
    train, val = (features[:200][known], labels[:200][known]), (features[200:], labels[200:])
    seen = labels[200:] < 9
    expected = choose_l2([(train, (val[0][seen], val[1][seen]))], 10)
    assert choose_l2([(train, val)], 10) == expected != L2_GRID[0]
    unseen = (val[0][~seen], val[1][~seen])
    assert choose_l2([(train, unseen)], 10) == choose_l2([], 10) == DEFAULT_L2
