#!/usr/bin/env bash
# When does MoCo pay? Sizes, class imbalances and labels of CIFAR-10 (JPEG), three seeds: 27 trials.
#
#   MOCOKIT_CIFAR10=cifar10-jpeg.tar.xz bash benchmarks/when_moco_pays.sh studies/cifar10 [--seeds 5 ...]
#
# A quarter of an hour of a core a trial. Stopped and started again it goes on; a copy of study.yaml and of the trials'
# result.json is enough to go on elsewhere. Without Ray (or with --trial-cpus of all cores) one trial runs at a time.
set -euo pipefail
out=${1:?usage: when_moco_pays.sh OUT [options of mocokit study]}
shift
exec mocokit study "${MOCOKIT_CIFAR10:?names no archive of CIFAR-10 (JPEG)}" --out "$out" --backbone resnet18_narrow \
    --sizes 1000,4000,12000 --imbalance 1,10,100 --labels 10,100,all --seeds 3 --steps 2000 --finetune-steps 1000 "$@"
