"""Does `mocokit select` choose better images to label than chance? Accuracy of a probe of as many of either.

    python benchmarks/selection.py runs/NAME OUT.csv                       # on the archive that $MOCOKIT_CIFAR10 names
    python benchmarks/selection.py lite0.safetensors OUT.csv --backbone tf_efficientnet_lite0 --image-size 96

The fast linear probe is trained on n selected images of the pool, then on n random ones, and tested on the same test
images; each seed draws a clustering and a random choice. A line of OUT.csv has means over the seeds and the t interval
of their paired differences; lines of other features that are there already stay.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

import torch
from scipy.stats import ttest_1samp

from mocokit.data.sampler import generator
from mocokit.data.store import open_store
from mocokit.deploy.loading import load
from mocokit.evaluation.features import extract
from mocokit.evaluation.probe import fast
from mocokit.evaluation.splits import Subset
from mocokit.reporting.selection import typiclust

COLUMNS = (
    *("data", "features", "pool", "test", "n", "seeds", "selected", "random", "gain_points", "low", "high"),
    *("selected_classes", "random_classes"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default=os.environ.get("MOCOKIT_CIFAR10"))
    parser.add_argument("--name", help="what to call the features; default RUN")
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--counts", default="20,50,100,500")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    encoder = load(given.run, backbone=given.backbone, image_size=given.image_size)
    store = open_store(
        given.data, image_size=encoder.spec.image_size, limit=given.pool, channels=encoder.spec.channels, to_train=True
    )
    print(store.summary(), file=sys.stderr)
    images, test = store.splits["train"], Subset.labelled(store.splits["test"]).sample(given.test, seed=0)
    pool, x_test = extract(encoder, images), extract(encoder, test.images, test.indices)
    classes = len(store.label_names or ())

    def probe(rows: torch.Tensor, seed: int) -> tuple[float, int]:
        """Accuracy after training on some of the pool, and how many classes these are of."""
        train = Subset(images, rows.sort().values)
        classifier = fast(lambda part: pool[part.indices], train, None, classes, seed)
        right = classifier.scores(x_test).argmax(dim=1) == test.labels
        return float(right.float().mean()), len(train.labels.unique())

    lines = []
    for n in map(int, given.counts.split(",")):
        chosen, drawn = [], []
        for seed in range(given.seeds):
            chosen.append(probe(torch.tensor([each.row for each in typiclust(pool, n, seed)]), seed))
            drawn.append(probe(torch.randperm(len(pool), generator=generator(seed, "random choice"))[:n], seed))
            print(f"n {n}, seed {seed}: {chosen[-1][0]:.2%}, random {drawn[-1][0]:.2%}", file=sys.stderr)
        (selected, selected_classes), (random, random_classes) = (torch.tensor(r).T.double() for r in (chosen, drawn))
        gains = 100 * (selected - random)
        low, high = ttest_1samp(gains.numpy(), 0).confidence_interval()
        lines.append(
            {
                "data": store.name,
                "features": given.name or given.run,
                "pool": len(pool),
                "test": len(test),
                "n": n,
                "seeds": given.seeds,
                "selected": round(float(selected.mean()), 4),
                "random": round(float(random.mean()), 4),
                "gain_points": round(float(gains.mean()), 2),
                "low": round(float(low), 2),
                "high": round(float(high), 2),
                "selected_classes": round(float(selected_classes.mean()), 1),
                "random_classes": round(float(random_classes.mean()), 1),
            }
        )
    write(given.out, lines)


def write(out: Path, lines: list[dict[str, object]]) -> None:
    """Add the lines to the table, in the place of those of the same features on the same data."""
    ours = {(line["data"], line["features"]) for line in lines}
    if out.exists():
        with out.open(newline="", encoding="utf-8") as file:
            lines = [r for r in csv.DictReader(file) if (r["data"], r["features"]) not in ours] + lines
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
