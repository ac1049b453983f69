#!/usr/bin/env bash
# The programme of a GPU, most valuable first; every result file is there as soon as it is measured. Eleven minutes are the
# aim; the whole of it has not been run yet, and at the pace measured (docs/benchmarks.md) its last part takes longer than it may.
#
#   MOCOKIT_CIFAR10=cifar10-jpeg.tar.xz bash benchmarks/gpu.sh OUT [--rehearse] [PART ...]
#
# Parts, with the seconds that each may take: tests (120), pace (150), fast (330), seed (90), full (390), and 60 each for
# the kNN and the probe of fast and full; a first compiler takes 30 to 50 of them. Without any: all of them, in that order.
# By name alone there is learning (460): three short runs that tell what precision and rate do. A part that fails or that
# lacks a package does not keep the others from their turn. --rehearse does everything on a CPU with tiny sizes: give it a
# small folder in the archive's place. $PYTHON is the interpreter (python).
set -uo pipefail
out=${1:?usage: gpu.sh OUT [--rehearse] [PART ...]}
shift
: "${MOCOKIT_CIFAR10:?names no archive of CIFAR-10 (JPEG)}"
python=${PYTHON:-python}
device=cuda rehearse=
if [ "${1:-}" = --rehearse ]; then
    device=cpu rehearse=yes
    shift
fi
mkdir -p "$out"
out=$(realpath "$out")
MOCOKIT_CIFAR10=$(realpath "$MOCOKIT_CIFAR10")
cd "$(dirname "$0")/.."
export MOCOKIT_CIFAR10 MOCOKIT_CACHE="${MOCOKIT_CACHE:-$out/cache}" PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$out/compiled}" # what one part has compiled the next finds
failed=()

# run LIMIT NAME COMMAND...: what it prints is kept in NAME.txt.
run() {
    local limit=$1 name=$2 begun=$SECONDS
    shift 2
    echo "== $name: $*"
    timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    echo "== $name: $((SECONDS - begun)) s, exit code $code" | tee -a "$out/parts.txt"
    [ "$code" = 0 ] || failed+=("$name")
}
mocokit() { run "$1" "$2" "$python" -m mocokit "${@:3}" --device "$device" --json; }

tests() {
    run 120 tests "$python" -m pytest -q --durations 12 --tb short -p no:cacheprovider \
        tests/data tests/test_cuda.py -k cuda
}
pace() {
    run 150 pace "$python" benchmarks/gpu_pace.py "$out/pace.csv" --device "$device" \
        ${rehearse:+--batch-size 8 --steps 2 --warmup 1}
}
# recipe LIMIT NAME RECIPE: pretrained, and its kNN and linear probe on all images.
recipe() {
    local small=(${rehearse:+--epochs 1 --batch-size 16 --queue-size 64 --bn-splits 4 --backbone resnet18_narrow})
    mocokit "$1" "$2" pretrain "$MOCOKIT_CIFAR10" --recipe "$3" --out "$out/$2" --monitor-every 10 --no-histograms --no-report \
        "${small[@]}"
    mocokit 60 "$2-knn" knn "$out/$2" "$MOCOKIT_CIFAR10"
    mocokit 60 "$2-probe" probe "$out/$2" "$MOCOKIT_CIFAR10"
}
fast() { recipe 330 fast fast-cifar10; }
seed() {
    if ! "$python" -c "import lightly" 2>/dev/null; then
        echo "== seed is left out: no lightly here" | tee -a "$out/parts.txt"
        return
    fi
    local sizes=(--images 50000 --batch-size 512 --steps 100 --warmup 10)
    [ -z "$rehearse" ] || sizes=(--images 64 --batch-size 16 --steps 2 --warmup 1)
    run 90 seed "$python" benchmarks/speed.py --rows b --sides peer --device "$device" --repeats 1 --out "$out/seed.csv" \
        --scratch "$out/speed" --data "$MOCOKIT_CIFAR10" --workers "$(nproc)" "${sizes[@]}"
}
full() { recipe 390 full moco-v2-cifar10; }
# Is anything lost on the way to speed? Twenty epochs as `auto` runs them, in plain float32, and at lightly's rate, four
# times the recipe's.
learning() {
    local plain=(--precision fp32 --no-compile --no-cuda-graphs)
    local small=(--epochs 20 ${rehearse:+--epochs 1 --batch-size 16 --queue-size 64 --bn-splits 4 --backbone resnet18_narrow})
    local options=(--recipe moco-v2-cifar10 --monitor-every 5 --no-histograms --no-report "${small[@]}")
    mocokit 130 learning pretrain "$MOCOKIT_CIFAR10" --out "$out/learning" "${options[@]}"
    mocokit 200 learning-plain pretrain "$MOCOKIT_CIFAR10" --out "$out/learning-plain" "${options[@]}" "${plain[@]}"
    mocokit 130 learning-rate pretrain "$MOCOKIT_CIFAR10" --out "$out/learning-rate" "${options[@]}" --lr 0.24
}

"$python" - <<'END' | tee "$out/machine.txt"
import platform, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"{gpu}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}")
END
for part in "${@:-all}"; do
    case "$part" in
    tests | pace | fast | seed | full | learning) "$part" ;;
    all) tests && pace && fast && seed && full ;;
    *)
        echo "no part $part; there are tests, pace, fast, seed, full and learning" >&2
        exit 2
        ;;
    esac
done
echo "== done (${SECONDS} s)${failed[*]:+; failed: ${failed[*]}}"
[ -z "${failed[*]:-}" ]
