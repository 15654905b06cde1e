#!/usr/bin/env bash
# Lint, types and tests, in the same environment as everything else. Flags go to pytest: bash script/test.sh -m slow
set -euo pipefail
[[ ${PYTHON:-} == [!/]*/* ]] && export PYTHON=$PWD/$PYTHON
cd "$(dirname "$0")/.."
bash script/setup.sh
export PYTHON=$PWD/.venv/bin/python   # before, PYTHON said what .venv is made with
source script/common.sh

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# A thread a process: more than cores would only wait for one another. A file stays on a process with its fixtures.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile -m "not slow" "$@"
