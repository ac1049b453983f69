"""Everything that is asked of one encoder, measured in turn: python benchmarks/evaluations.py RUN DATA OUT.csv

Each figure comes from a fresh process of the command that a user would run. The quick commands run three times, in
between the long ones, so that whatever else the machine does meets both.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("method", "top1", "low", "high", "seconds", "seconds_min", "seconds_max", "n", "command")


def mocokit(*arguments: str) -> dict[str, Any]:
    """The result object of one command."""
    print("mocokit", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mocokit", *arguments, "--json"], stdout=subprocess.PIPE, check=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def row(method: str, results: list[dict[str, Any]], who: str, verb: str) -> dict[str, Any]:
    """A line of the table: the figure of the first result and the seconds of all."""
    figure = results[0][who]
    seconds = [result[who].get("wall_s") or result[who]["train_s"] for result in results]
    low, high = figure["ci95"]
    return {
        "method": method,
        "top1": round(figure["top1"], 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "seconds": round(statistics.median(seconds), 2),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "n": len(seconds),
        "command": f"mocokit {verb}",
    }


def main(run: str, data: str, out: str) -> None:
    mocokit("knn", run, data)  # decodes the images, which is nobody's time
    long = (("probe", run, data, "--protocol", "sgd"), ("finetune", run, data), None)
    knn, fast, slow = [], [], []
    for command in long:
        knn.append(mocokit("knn", run, data))
        fast.append(mocokit("probe", run, data))
        slow += [mocokit(*command)] if command else []
    sgd, tuned = slow[:1], slow[1:]
    rows = [
        row("raw pixels, kNN", knn, "raw_pixels", "knn RUN DATA"),
        row("colour histogram, kNN", knn, "colour_histogram", "knn RUN DATA"),
        row("random initialisation, kNN", knn, "random_init", "knn RUN DATA"),
        row("random initialisation, fast probe", fast, "random_init", "probe RUN DATA"),
        row("MoCo, kNN", knn, "encoder", "knn RUN DATA"),
        row("MoCo, fast probe", fast, "encoder", "probe RUN DATA"),
        row("MoCo, sgd probe", sgd, "encoder", "probe RUN DATA --protocol sgd"),
        row("from scratch, supervised", tuned, "random_init", "finetune RUN DATA --from-scratch"),
        row("MoCo, fine-tuned", tuned, "encoder", "finetune RUN DATA"),
    ]
    with Path(out).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    ratio = [sgd[0]["encoder"]["wall_s"] / each["encoder"]["wall_s"] for each in fast]
    print(f"the sgd probe (n = 1) takes {min(ratio):.0f} to {max(ratio):.0f} times as long as the fast one (n = 3)")
    print(f"{os.cpu_count()} cores; {knn[0]['versions']}")
    for line in rows:
        interval = f"({line['low']:.1%} to {line['high']:.1%})"
        print(f"{line['method']:36} {line['top1']:6.1%} {interval} {line['seconds']:8.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
