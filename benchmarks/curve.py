"""Draw kNN accuracy and loss over a run: python benchmarks/curve.py RUN OUT.png (needs matplotlib)."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from mocokit.training.log import read_rows


def main(run: str, out: str) -> None:
    rows = read_rows(Path(run) / "metrics.csv")
    epochs = [float(row["step"]) / float(rows[-1]["step"]) * float(rows[-1]["epoch"]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    measured = [(e, 100 * float(row["knn_top1"])) for e, row in zip(epochs, rows, strict=True) if row["knn_top1"]]
    left.plot(*zip(*measured, strict=True), marker="o", color="tab:blue")
    left.axhline(measured[0][1], color="gray", linestyle="--", linewidth=1)
    left.annotate("untrained network", (epochs[-1], measured[0][1]), ha="right", va="bottom", color="gray")
    left.set(xlabel="epoch", ylabel="kNN top-1 (%)", title="checks during training")
    shares = [row["loss_over_chance"] for row in rows]  # none while the queue fills
    losses = [(e, float(share)) for e, share in zip(epochs, shares, strict=True) if share]
    right.plot(*zip(*losses, strict=True), color="tab:orange")
    right.set(xlabel="epoch", ylabel="loss / log(K + 1)", title="loss over chance level")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
