#!/usr/bin/env bash
# Runs the benchmarks that take minutes, one after the other; results go to benchmarks/results.
#
#   bash benchmarks/run.sh                                  those that need no recordings
#   bash benchmarks/run.sh --source DIR                     and those on your copy of PASCAL
#   bash benchmarks/run.sh --source DIR --corpora DIR ...   and those on unlabelled corpora
#
# Installs into .venv first. Run it on an idle machine: it measures time. The benchmarks that train
# for hours (foundation_model.py, circor_transfer.py and others) are started by hand; each says how
# at its top.
set -euo pipefail
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 0
fi
source_folder="" corpora=()
while [ $# -gt 0 ]; do
    case "$1" in
        --source)
            [ $# -ge 2 ] || { echo "error: --source: expected a folder after it" >&2; exit 2; }
            source_folder="$(realpath -- "$2")"
            shift 2
            ;;
        --corpora)
            shift
            while [ $# -gt 0 ] && [[ "$1" != --* ]]; do
                corpora+=("$(realpath -- "$1")")
                shift
            done
            ;;
        *) echo "error: unknown option '$1'; see bash benchmarks/run.sh --help" >&2; exit 2 ;;
    esac
done
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment "dev,onnx,bench"

run() {
    echo "== $*"
    .venv/bin/python "$@"
}
run benchmarks/inference_speed.py
run benchmarks/scale.py
if [ -n "$source_folder" ]; then
    run benchmarks/finetuning_speed.py --source "$source_folder"
    run benchmarks/data_loading.py --source "$source_folder"
fi
if [ ${#corpora[@]} -gt 0 ]; then
    run benchmarks/pretraining_speed.py --corpora "${corpora[@]}"
    run benchmarks/streaming.py --corpora "${corpora[@]}"
    run benchmarks/scaling_plan.py
fi
