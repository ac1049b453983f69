#!/usr/bin/env bash
# Does it learn? FOLDER (train/ and test/ class folders) for BUDGET on this machine, all else left to auto, seeds 0-2.
#   bash benchmarks/learning.sh FOLDER 6m OUT
set -euo pipefail
folder=$1 budget=$2 out=$3
for seed in 0 1 2; do
    mocokit pretrain "$folder" --time-budget "$budget" --seed "$seed" --out "$out/seed$seed" --no-report --json \
        >"$out-seed$seed.json"
done
