#!/usr/bin/env bash
# The whole programme on one GPU, in steps of under ten minutes. A step that is done is not done again, and the long
# run goes on where it was stopped: call it until it says "done". Needs mocokit[benchmarks] and the photographs.
#   MOCOKIT_CIFAR10=cifar10-jpeg.tar.xz bash benchmarks/gpu.sh OUT [STEP ...]      (steps 1 2 3 4 5; default all)
# $PYTHON is the interpreter (python), $LIMIT the seconds a step may take (570).
set -euo pipefail
out=${1:?usage: gpu.sh OUT [STEP ...]}
shift
: "${MOCOKIT_CIFAR10:?names no archive of CIFAR-10 (JPEG)}"
mkdir -p "$out"
out=$(realpath "$out")
MOCOKIT_CIFAR10=$(realpath "$MOCOKIT_CIFAR10")
export MOCOKIT_CIFAR10 MOCOKIT_CACHE="${MOCOKIT_CACHE:-$out/cache}"
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
limit=${LIMIT:-570}
here=benchmarks
run="$out/moco-v2-cifar10"

# step NAME COMMAND...: run it unless it has finished before; what it prints is kept in NAME.txt.
step() {
    local name=$1
    shift
    [ -e "$out/$name.done" ] && { echo "== $name: done before"; return; }
    echo "== $name: $* (${SECONDS}s)"
    timeout --signal=INT --kill-after=20 "$limit" "$@" > >(tee "$out/$name.txt") || {
        echo "== $name: ended with $? after ${SECONDS}s; call again to go on" >&2
        exit 1
    }
    touch "$out/$name.done"
}

ceilings() { step 1-ceilings "$python" $here/ceilings.py "$out/ceilings.csv"; }
beside_the_seed() {
    # Batch 512 as in the notebook. Few repeats: a fresh process of the seed's pipeline takes a minute. The first step
    # writes the files and decodes them, which is most of its time.
    local row
    step 2-files "$python" $here/speed.py --rows a-cached --device cuda --batch-size 512 --repeats 1 --workers 8 \
        --scratch "$out/speed" --out "$out/speed.csv"
    for row in b e-fp32 e-bf16 e-narrow g h-pretrain h-embed; do
        step "2-$row" "$python" $here/speed.py --rows "$row" --device cuda --batch-size 512 --steps 200 --warmup 20 \
            --repeats 3 --workers 8 --scratch "$out/speed" --out "$out/speed.csv"
    done
}
where_it_goes() {
    step 3-profile "$python" $here/profile_step.py --device cuda --precision bf16 --backbone resnet18_cifar \
        --batch-size 512 --steps 50
    step 3-compiled "$python" $here/profile_step.py --device cuda --precision bf16 --backbone resnet18_cifar \
        --batch-size 512 --steps 50 --compile
    step 3-graphs "$python" $here/profile_step.py --device cuda --precision bf16 --backbone resnet18_cifar \
        --batch-size 512 --steps 50 --compile --cuda-graphs
}
full_run() {
    step 4-pretrain "$python" -m mocokit pretrain "$MOCOKIT_CIFAR10" --recipe moco-v2-cifar10 --device cuda \
        --out "$run" --json
    step 4-knn "$python" -m mocokit knn "$run" "$MOCOKIT_CIFAR10" --device cuda --json
    step 4-probe "$python" -m mocokit probe "$run" "$MOCOKIT_CIFAR10" --device cuda --json
}
fast_recipe() {
    step 5-fast "$python" -m mocokit pretrain "$MOCOKIT_CIFAR10" --recipe fast-cifar10 --device cuda \
        --out "$out/fast-cifar10" --json
    step 5-probe "$python" -m mocokit probe "$out/fast-cifar10" "$MOCOKIT_CIFAR10" --device cuda --json
    step 5-longer "$python" -m mocokit pretrain "$MOCOKIT_CIFAR10" --recipe fast-cifar10 --epochs 240 --device cuda \
        --out "$out/fast-cifar10-240" --json
    step 5-longer-probe "$python" -m mocokit probe "$out/fast-cifar10-240" "$MOCOKIT_CIFAR10" --device cuda --json
}

for number in "${@:-all}"; do
    case "$number" in
    1) ceilings ;;
    2) beside_the_seed ;;
    3) where_it_goes ;;
    4) full_run ;;
    5) fast_recipe ;;
    all)
        ceilings
        beside_the_seed
        where_it_goes
        full_run
        fast_recipe
        ;;
    *)
        echo "no step $number; there are 1 to 5" >&2
        exit 2
        ;;
    esac
done
echo "== done (${SECONDS}s)"
