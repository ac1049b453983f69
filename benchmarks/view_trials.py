"""Can a short trial choose the views of a run, and by which score? Six views, trained briefly and in full.

    python benchmarks/view_trials.py DATA OUT.csv [--seeds 3] [--trial-images 16000] [--images 80000]
    python benchmarks/view_trials.py textures:FOLDER OUT.csv   # a set that is made: classes are scales of a pattern

Colours as the papers have them or mild, crops from 0.15, 0.35 or 0.7 of the area; all else is what `auto` chooses.
A line of OUT.csv is of one encoder: how long it was trained, its label-free scores, kNN of training images by each
other, and kNN of the test images. Scores are of the same images and the same, neutral, views whatever an encoder was
trained with. Lines that are there already are not measured again.
"""

import argparse
import csv
import math
import sys
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import mocokit
from mocokit.data.sampler import random_subset
from mocokit.data.store import Store, open_store
from mocokit.evaluation.features import extract, rows_of
from mocokit.evaluation.knn import KnnEvaluator, knn_ranks
from mocokit.evaluation.lidar import lidar, trial_views
from mocokit.evaluation.logistic import logistic_path
from mocokit.evaluation.scorecard import SCORES
from mocokit.evaluation.splits import split_labelled
from mocokit.model.encoder import Encoder

COLOURS = {"papers": {}, "mild": {"jitter_strength": 0.25, "gray_p": 0.0}}
CROPS = (0.15, 0.35, 0.7)
SCORED = 1000
FIGURES = ("rotation", "lidar", "alpha", "train_knn", "test_knn", "test_low", "test_high")
COLUMNS = ("data", "seed", "colours", "crop_min", "images", "seconds", *(s.name for s in SCORES), *FIGURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trial-images", type=int, default=16_000)
    parser.add_argument("--images", type=int, default=80_000)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    data = given.data
    if data.startswith("textures:"):
        data = str(textures(Path(data.removeprefix("textures:"))))
    name = Path(data).name.split(".")[0]
    known = list(csv.DictReader(given.out.open())) if given.out.exists() else []
    done = {tuple(row[c] for c in ("data", "seed", "colours", "crop_min", "images")) for row in known}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for images, crop_min, colours in product((given.trial_images, given.images), CROPS, COLOURS):
            if (name, str(seed), colours, str(crop_min), str(images)) in done:
                continue
            started = time.perf_counter()
            views = {"crop_min": crop_min, **COLOURS[colours]}
            figures = trained(data, views, images, given.limit, seed)
            row = {"data": name, "seed": seed, "colours": colours, "crop_min": crop_min, "images": images}
            row |= {"seconds": round(time.perf_counter() - started, 1)}
            row |= {k: round(v, 4) for k, v in figures.items()}
            new = not given.out.exists()
            with given.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, file=sys.stderr)


def trained(data: str, views: dict[str, float], images: int, limit: int | None, seed: int) -> dict[str, float]:
    """Figures of an encoder that has seen so many ``images`` in these views."""
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = {"limit": limit, "seed": seed, "workers": 0, "evaluate": False, "report": False, "histograms": False}
        batch = 64
        mocokit.pretrain(data, out=str(run), steps=images // batch, batch_size=batch, **options, **views)
        encoder = mocokit.load(str(run))
    store = open_store(data, image_size=encoder.spec.image_size, limit=limit, channels=encoder.spec.channels)
    return label_free(encoder, store, seed) | accuracies(encoder, store, seed)


def label_free(encoder: Encoder, store: Store, seed: int) -> dict[str, float]:
    """Scores of training images; see the module."""
    images = store.splits["train"]
    rows = random_subset(len(images), SCORED, 0)
    x = [encoder.spec.view(*rows_of(images, part, encoder.device)) for part in rows.split(250)]
    with torch.inference_mode():
        turned = torch.stack(
            [torch.cat([encoder.backbone(torch.rot90(part, turns, (2, 3))) for part in x]) for turns in range(4)]
        )
    views = trial_views(encoder, images)
    scores = {s.name: s.measure(turned[0], views[:, 0], views[:, 1]) for s in SCORES}
    return scores | {"rotation": rotation(turned), "lidar": lidar(views), "alpha": alpha(turned[0])}


def rotation(turned: Tensor) -> float:
    """Accuracy of a linear classifier, on images that it has not seen, of how far an image is turned, from features
    [4, N, D] (Reed et al. 2021, arXiv 2009.07724)."""
    half = turned.shape[1] // 2
    labels = torch.arange(4)[:, None].expand(4, half).reshape(-1)
    train, test = (turned[:, part : 2 * half : 2].reshape(4 * half, -1) for part in (0, 1))
    classifiers = logistic_path(train, labels, 4, (1e-1, 1e-2, 1e-3), tolerance=1e-4)
    return max(float((c.scores(test).argmax(1) == labels).float().mean()) for c in classifiers)


def alpha(features: Tensor) -> float:
    """Power with which the eigenvalues of the covariance of features [N, D] fall (Agrawal et al. 2022, alpha-ReQ)."""
    x = features.double() - features.double().mean(0)
    values = torch.linalg.svdvals(x).square()[2:50].clamp(min=1e-12).numpy()
    return float(-np.polyfit(np.log(np.arange(3, 3 + len(values))), np.log(values), 1)[0])


def accuracies(encoder: Encoder, store: Store, seed: int) -> dict[str, float]:
    """kNN of training images by each other, and of the test images by the training images."""
    splits = split_labelled(store, seed)
    assert not isinstance(splits, str), splits
    knn = KnnEvaluator.of(splits, 200, 0.1)
    bank, queries = (extract(encoder, part.images, part.indices) for part in (knn.bank, knn.queries))
    some = random_subset(len(bank), min(2 * SCORED, len(bank)), 0)
    half = len(some) // 2
    pool, held = some[::2], some[1::2]
    labels = knn.bank.labels
    inner = knn_ranks(bank[pool], labels[pool], bank[held], labels[held], k=min(200, half // 5))
    ranks = knn_ranks(bank, labels, queries, knn.queries.labels)
    top1 = float((ranks == 0).float().mean())
    error = 1.96 * math.sqrt(top1 * (1 - top1) / len(ranks))
    figures = {"train_knn": float((inner == 0).float().mean())}
    return figures | {"test_knn": top1, "test_low": top1 - error, "test_high": top1 + error}


def textures(folder: Path, each: int = 400, side: int = 48) -> Path:
    """Six classes, 400 pictures each, 48 pixels: stripes, checks or dots in random colours, at six scales that are the
    classes. What shrinks or enlarges hides them; colour says nothing. A fifth is for tests."""
    if folder.exists():
        return folder
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for scale, count in product(range(6), range(each)):
        period = 3.0 * 1.35**scale * draw.uniform(0.93, 1.07)
        angle, kind = draw.uniform(0, math.pi), draw.integers(3)
        u = (x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period + draw.uniform(0, 6.3)
        v = (y * math.cos(angle) - x * math.sin(angle)) * 2 * math.pi / period + draw.uniform(0, 6.3)
        wave = [np.sin(u), np.sin(u) * np.sin(v), np.maximum(np.sin(u), np.sin(v))][kind]
        first, second = draw.uniform(0, 255, (2, 3))
        mix = ((wave + 1) / 2)[..., None]
        picture = first * mix + second * (1 - mix) + draw.normal(0, 12, (side, side, 3))
        split = "test" if count % 5 == 0 else "train"
        path = folder / split / f"scale{scale}" / f"{count:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    return folder


if __name__ == "__main__":
    main()
