"""Results of trials that no training made."""

import json
from pathlib import Path

FIGURES = {  # accuracy of fine-tuning at 10 and all labels, and of features, by method
    "moco-finetuned": (0.50, 0.70, None),
    "from-scratch": (0.40, 0.80, 0.60),
    "moco": (None, None, 0.50),
}


def made_trials(folder: Path, seeds: int = 3, images: int = 100) -> list[Path]:
    """Of ``images`` in 2 classes at imbalance 1 and 10, where features lose a tenth; each seed is a bit better."""
    directories = []
    for ratio in (1.0, 10.0):
        for seed in range(seeds):
            rows = []
            for method, (few, every, features) in FIGURES.items():
                shown = [("finetune", "10", few), ("finetune", "all", every)]
                shown.append(("probe-all", "all", features and features * (0.9 if ratio > 1 else 1)))
                for measure, labels, accuracy in shown:
                    if accuracy is not None:
                        row = {"method": method, "measure": measure, "labels": labels, "figure": "top1"}
                        rows.append(row | {"accuracy": accuracy + 0.01 * seed, "seconds": 1.5})
            rows[0]["accuracy"] += 0.01 * seed  # of moco-finetuned, so that differences vary: at 10 labels
            rows[1]["accuracy"] -= 0.01 * seed  # and at all
            directory = folder / f"n{images}-r{ratio:g}-s{seed}"
            directory.mkdir(parents=True)
            cell = {"images": images, "imbalance": ratio, "seed": seed}
            result = {"cell": cell, "labels": ["10", "all"], "methods": list(FIGURES), "rows": rows}
            result |= {"machine": "here, there", "versions": {"torch": "2"}, "wall_s": 9.0}
            (directory / "result.json").write_text(json.dumps(result))
            directories.append(directory)
    return directories
