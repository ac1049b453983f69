"""Views per second on one core: mocokit against lightly's MoCoV2Transform and torchvision, image by image.

`OMP_NUM_THREADS=1 python benchmarks/views.py` (needs lightly). All three make MoCo v2 views with blur from
decoded images; drawing the parameters is included. Repeats are interleaved: a busy machine slows all alike.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from lightly.transforms import MoCoV2Transform
from torchvision.transforms import v2

from mocokit.data.augment import augment
from mocokit.data.view_params import AUGMENTATIONS, sample_params

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def mocokit_views(images: torch.Tensor, generator: torch.Generator) -> None:
    sizes = torch.tensor(images.shape[-2:]).expand(len(images), 2)
    params = sample_params(AUGMENTATIONS["v2"], sizes, images.shape[1], generator)
    augment(images, params, images.shape[-1], MEAN, STD)


def torchvision_transform(size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, sigma=(0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.Normalize(MEAN, STD),
        ]
    )


def candidates(size: int, batch: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> (views a call, call). The per-image transforms get a smaller part of the batch."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (batch, 3, size // 8, size // 8), generator=generator, dtype=torch.uint8)
    images = noise.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    few = images[:64]
    pil = [v2.functional.to_pil_image(image) for image in few]
    lightly = MoCoV2Transform(input_size=size)  # two views of each image
    per_image = torchvision_transform(size)
    return {
        "mocokit": (batch, lambda: mocokit_views(images, generator)),
        "lightly": (2 * len(pil), lambda: [lightly(image) for image in pil]),
        "torchvision v2": (len(few), lambda: [per_image(image) for image in few]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=21)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"torchvision {torchvision.__version__}, 1 thread, n = {repeats} after 3 warm-up calls")
    print(f"{'size':>5} {'':<15} {'views/s':>9} {'quartiles':>17} {'best':>9}")
    for size, batch in ((32, 512), (96, 128)):
        calls = candidates(size, batch)
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(-3, repeats):
            for name, (views, call) in calls.items():
                start = time.perf_counter()
                call()
                if repeat >= 0:
                    rates[name].append(views / (time.perf_counter() - start))
        for name, rate in rates.items():
            low, median, high = statistics.quantiles(rate, n=4)
            print(f"{size:>5} {name:<15} {median:>9,.0f} {low:>8,.0f}-{high:<8,.0f} {max(rate):>9,.0f}")


if __name__ == "__main__":
    main()
