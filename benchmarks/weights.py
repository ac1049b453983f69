"""Is it worth going on from weights? One table for DATA at an equal time budget, of features of every origin.

    python benchmarks/weights.py DATA OUT --weights lite0.safetensors --backbone tf_efficientnet_lite0 \\
        --image-size 96 --budget 15m

Each figure is that of the command that a user would run. What is finished in OUT is not run again, so a stopped
benchmark goes on; --finetune EPOCHS adds the longest part. OUT.csv is the table.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("features", "image_size", "train_s", "knn", "probe", "ten_labels", "finetune")
KINDS = {"knn": ["knn"], "probe": ["probe"], "ten_labels": ["probe", "--labels-per-class", "10"]}


def mocokit(kept: Path, *arguments: str) -> dict[str, Any]:
    """The result object of a command, from ``kept`` if it is there."""
    if not kept.exists():
        print("mocokit", *arguments, file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "mocokit", *arguments, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def figure(result: dict[str, Any]) -> str:
    """Top-1 in per cent with its interval."""
    low, high = result["ci95"]
    return f"{100 * result['top1']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    for name in ("weights", "backbone", "image-size", "budget"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--finetune", help="epochs")
    parser.add_argument("--options", default="", help="more options of every command, such as '--limit 5000'")
    given = parser.parse_args()
    options = ["--seed", given.seed, *given.options.split()]
    network = ["--backbone", given.backbone, "--image-size", given.image_size]
    start = ["--weights", given.weights, *network]
    rows = []
    for name, more in (("nothing", []), ("continued", start)):
        run = given.out / name
        budget = ["--time-budget", given.budget, "--no-report", "--out", str(run), *options]
        trained = mocokit(given.out / f"{name}.json", "pretrain", given.data, *budget, *more)
        results = {
            kind: mocokit(given.out / f"{name}-{kind}.json", verb[0], str(run), given.data, *verb[1:], *options)
            for kind, verb in KINDS.items()
        }
        if given.finetune:
            tuned = {"encoder": [str(run)]}
            tuned |= {"random_init": [str(run), "--from-scratch"]} if name == "nothing" else {}
            tuned |= {"given_weights": [given.weights, *network]} if name == "continued" else {}
            results["finetune"] = {}
            for who, (run_, *rest) in tuned.items():
                kept = given.out / f"{name}-{who}-finetune.json"
                how = ["--epochs", given.finetune, "--no-baseline", "--out", str(kept.with_suffix("")), *options, *rest]
                results["finetune"][who] = mocokit(kept, "finetune", run_, given.data, *how)["encoder"]
        size, seconds = trained["config"]["image_size"], trained["wall_s"]
        origins = {"encoder": "MoCo from random weights" if name == "nothing" else "MoCo continued from the weights"}
        if name == "nothing":
            origins |= {"raw_pixels": "raw pixels", "colour_histogram": "colour histogram"}
            origins["random_init"] = "random initialisation"
        else:
            origins["given_weights"] = "the weights as they are"
        for who, origin in origins.items():
            row = {"features": origin, "image_size": size, "train_s": seconds if who == "encoder" else 0}
            row |= {kind: figure(result[who]) for kind, result in results.items() if result.get(who)}
            rows.append(row)
    with given.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("  ".join(f"{row.get(name, ''):{34 if name == 'features' else 22}}" for name in COLUMNS))


if __name__ == "__main__":
    main()
