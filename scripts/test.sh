#!/usr/bin/env bash
# All checks: format, lint, types, tests. Installs into .venv first.
#
#   bash scripts/test.sh                 everything but the slow tests
#   bash scripts/test.sh -m slow         the slow tests
#   bash scripts/test.sh tests/unit -k audio   any pytest arguments
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment "dev,onnx"
# The models of the tests are tiny: threads that wait for each other cost more than they bring.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if [ $# -eq 0 ]; then
    .venv/bin/ruff format --check .
    .venv/bin/ruff check .
    .venv/bin/mypy
fi
exec .venv/bin/python -m pytest "$@"
