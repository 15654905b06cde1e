#!/usr/bin/env bash
# Make .venv with everything in requirements.txt. Does nothing where that is done already.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "error: Python >= 3.10 is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
wanted=$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml")
if [ "$(cat "$ROOT/.venv/installed" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: installing requirements.txt into .venv"
    "$PYTHON" -m venv "$ROOT/.venv"
    "$ROOT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$ROOT/requirements.txt"
    printf '%s\n' "$wanted" > "$ROOT/.venv/installed"
fi
