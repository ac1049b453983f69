"""Are features better than others by more than luck? Every labelled image tests once.

    python benchmarks/folds.py DATA ENCODER [ENCODER ...] [--backbone NAME] [--image-size N] [--seed N]

A fifth that is held out once, as `mocokit probe` has it, is a small test on small data: of 864 images the interval of
an accuracy is 6 points wide. Here a linear probe tests each of five folds after fitting the other four (its penalty is
chosen within these), and kNN each of a hundred by the others, so that the paired difference from the first encoder has
a standard error of half a point on 4,317 images. Pretraining may have seen all of them, without labels. Encoders are
runs or what else `mocokit.load` takes; --backbone and --image-size are those of a weights file among them.
"""

import argparse

import torch

from mocokit.data.sampler import generator
from mocokit.data.store import open_store
from mocokit.deploy.loading import is_foreign, load
from mocokit.evaluation.features import extract
from mocokit.evaluation.knn import knn_ranks
from mocokit.evaluation.logistic import logistic_path
from mocokit.evaluation.probe import choose_l2
from mocokit.evaluation.splits import stratified_folds


def probe(x: torch.Tensor, y: torch.Tensor, folds: list[torch.Tensor], classes: int) -> torch.Tensor:
    """Of which images a linear probe is right that was fitted without their fold: [N] bool."""
    right = torch.zeros(len(y), dtype=torch.bool)
    for number, test in enumerate(folds):
        validation = folds[number - 1]
        inner = ~test & ~validation
        l2 = choose_l2([((x[inner], y[inner]), (x[validation], y[validation]))], classes)
        (classifier,) = logistic_path(x[~test], y[~test], classes, [l2])
        right[test] = classifier.scores(x[test]).argmax(dim=1) == y[test]
    return right


def knn(x: torch.Tensor, y: torch.Tensor, folds: list[torch.Tensor]) -> torch.Tensor:
    """Of which images kNN (k 200, temperature 0.1) is right by those outside their fold: [N] bool."""
    right = torch.zeros(len(y), dtype=torch.bool)
    for test in folds:
        right[test] = knn_ranks(x[~test], y[~test], x[test], y[test]) == 0
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("encoders", nargs="+")
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    first: dict[str, torch.Tensor] = {}
    for name in given.encoders:
        own = {"backbone": given.backbone, "image_size": given.image_size} if is_foreign(name) else {}
        encoder = load(name, **own)
        store = open_store(given.data, image_size=encoder.spec.image_size)
        images, classes = store.splits["train"], store.label_names
        assert images.labels is not None
        assert classes is not None
        known = torch.from_numpy(images.labels >= 0).nonzero()[:, 0]
        x, y = extract(encoder, images, known), torch.from_numpy(images.labels)[known]
        five, hundred = (stratified_folds(y, count, generator(given.seed, "folds")) for count in (5, 100))
        for what, right in (("probe", probe(x, y, five, len(classes))), ("kNN", knn(x, y, hundred))):
            gain = right.double() - first.setdefault(what, right).double()
            error = float(gain.std()) / len(gain) ** 0.5
            line = f"{100 * right.double().mean():.2f} %  {100 * gain.mean():+.2f} (standard error {100 * error:.2f})"
            print(f"{name}  {what} {line}", flush=True)


if __name__ == "__main__":
    main()
