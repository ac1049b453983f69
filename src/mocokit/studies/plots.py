"""The plot of a study: accuracy over images, a panel for each imbalance, a line with its band for each method."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mocokit.files import replacing
from mocokit.studies.results import MEAN, NAMES, Comparison
from mocokit.studies.statistics import ALL

MEASURES = ("probe", "finetune")  # what the user gets from the subset and all of its labels


def has_matplotlib() -> bool:
    """Whether it is installed."""
    return find_spec("matplotlib") is not None


def write_plots(out: Path, comparisons: Sequence[Comparison]) -> None:
    """Write ``study.png`` and ``study.svg``."""
    from matplotlib.figure import Figure

    shown = [
        c for c in comparisons
        if c.statistic == MEAN and c.setting[3] in MEASURES and c.setting[4:] == (ALL, "top1")
    ]  # fmt: skip
    ratios = sorted({c.setting.imbalance for c in shown})
    if not ratios:
        return
    figure = Figure(figsize=(2.2 + 3.2 * len(ratios), 3.8), layout="constrained")
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
    for panel, ratio in zip(panels, ratios, strict=True):
        for number, method in enumerate(NAMES):
            points = sorted((c.setting.images, c.interval) for c in shown if c.setting[1:3] == (ratio, method))
            if points:
                images = [n for n, _ in points]
                mean, half = (100 * np.array([getattr(i, name) for _, i in points]) for name in ("mean", "half_width"))
                panel.plot(images, mean, marker="o", color=f"C{number}", label=method)
                panel.fill_between(images, mean - half, mean + half, color=f"C{number}", alpha=0.2, linewidth=0)
        panel.set_title({0.0: "classes as they are", 1.0: "balanced"}.get(ratio, f"r = {ratio:g}"))
        panel.set_xscale("log")
        sizes = sorted({c.setting.images for c in shown if c.setting.imbalance == ratio})
        panel.set_xticks(sizes, [f"{n:,}" for n in sizes])
        panel.set_xticks([], minor=True)
        panel.set_xlabel("training images")
    panels[0].set_ylabel("top-1 on test images, %")
    labelled = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside right upper", fontsize="small")
    for suffix in ("png", "svg"):
        with replacing(out / f"study.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, dpi=150)
