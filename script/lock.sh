#!/usr/bin/env bash
# Write constraints.txt anew: the exact version of every package, transitive ones included, that pyproject.toml allows,
# for Python 3.10 and newer, Linux, macOS and Windows, the CPU and the CUDA build of torch. Then run script/test.sh.
#   bash script/lock.sh                                  # the newest releases of everything but torch
#   bash script/lock.sh --upgrade-package transformers   # of one package; any flags of `uv pip compile`
set -euo pipefail
cd "$(dirname "$0")/.."
TORCH=${TORCH:-2.13.0}   # chosen by hand, since numbers are compared across runs

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet uv==0.13.9
echo "torch==$TORCH" | UV_PYTHON_DOWNLOADS=never "$folder/bin/uv" pip compile pyproject.toml --quiet --universal \
    --python-version 3.10 --all-extras --no-annotate --custom-compile-command "bash script/lock.sh" --constraint - \
    --output-file constraints.txt "${@:---upgrade}"
