#!/usr/bin/env bash
# The main job from nothing: installs into .venv, fine-tunes, scores, and writes a report.
#
#   bash scripts/quickstart.sh                          simulated recordings, no download
#   bash scripts/quickstart.sh --data ~/heartbeat-sounds   your copy of the PASCAL recordings
#   bash scripts/quickstart.sh --epochs 3               any option of `hb-ssl train`
set -euo pipefail
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 0
fi
started_in="$PWD"
cd "$(dirname "$0")/.."
output="runs/quickstart"
options=()
while [ $# -gt 0 ]; do
    if [ "$1" = "--data" ]; then
        [ $# -ge 2 ] || { echo "error: --data: expected a folder after it" >&2; exit 2; }
        data="$2"
        case "$data" in /*) ;; *) data="$started_in/$data" ;; esac
        options+=(--source "$data")
        output="runs/quickstart-$(basename "$data")"
        shift 2
    else
        options+=("$1")
        shift
    fi
done
source scripts/environment.sh
ensure_environment ""
exec .venv/bin/accelerate launch \
    --num_machines 1 --num_processes 1 --mixed_precision no --dynamo_backend no \
    scripts/train.py --config configs/quickstart.yaml --output_dir "$output" --overwrite \
    ${options[@]+"${options[@]}"}
