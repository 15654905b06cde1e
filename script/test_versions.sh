#!/usr/bin/env bash
# The decoder's tests and a small pipeline with the lowest releases of transformers, peft and accelerate that
# pyproject.toml allows, with the newest that pip finds, and with those of constraints.txt. Prints a table; fails where
# one fails. Each in an environment of its own, thrown away after it, which takes from .venv what the three do not need.
#   bash script/test_versions.sh
#   bash script/test_versions.sh transformers==5.10.4 "transformers==5.17.0 peft==0.18.0"   # these instead
set -euo pipefail
[[ ${PYTHON:-} == [!/]*/* ]] && export PYTHON=$PWD/$PYTHON
cd "$(dirname "$0")/.."
bash script/setup.sh
export PYTHON=$PWD/.venv/bin/python OMP_NUM_THREADS=1
source script/common.sh
LOGS=$LOG_DIR/test_versions
PACKAGES=(transformers peft accelerate)
TESTS=(tests/beamsd tests/specgr/test_tiger.py tests/specgr/test_decoding.py    # token trees in LLaMA and others, and in T5
       tests/atspeed/test_checkpoints.py tests/genrec/test_items.py)            # what from_pretrained says of weights
PIPELINE=tests/atspeed/test_pipeline.py
PARTS="checked_table or same_scores_in_a_new_process or two_processes"         # four stages; LoRA; accelerate

lowest=()
for package in "${PACKAGES[@]}"; do
    lowest+=("$package==$(sed -nE "s/.*\"$package>=([0-9.]+),.*/\1/p" pyproject.toml)")
done
rows=("" "${lowest[*]}" "--upgrade ${PACKAGES[*]}")
[ $# -eq 0 ] || rows=("$@")

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$LOGS"
table="| releases | transformers | peft | accelerate | the decoder's tests | a small pipeline |"$'\n'"|---|---|---|---|---|---|"
failed=0

# check NAME ARGUMENTS…: run pytest; prints what its last line says, and keeps the rest.
check() {
    local log=$LOGS/$1.log
    shift
    "$folder/env/bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile -m "not slow" "$@" > "$log" 2>&1 ||
        echo "**failed, see $log**: "
    { grep -E '[0-9]+ (passed|failed|error)' "$log" || cat "$log"; } | tail -n 1
}

for row in "${rows[@]}"; do
    name=${row:-locked}
    [[ $row == --upgrade* ]] && name=newest
    [ "$row" = "${lowest[*]}" ] && name=lowest
    echo "== $name: ${row:-constraints.txt}"
    rm -rf "$folder/env"
    "$PYTHON" -m venv "$folder/env"
    "$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        > "$(echo "$folder"/env/lib/python*/site-packages)/venv.pth"
    read -ra wanted <<< "$row"
    if [ -n "$row" ] && ! "$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"; then
        table+=$'\n'"| $name: $row | | | | **cannot be installed** | |"
        failed=1
        continue
    fi
    versions=$("$folder/env/bin/python" -c 'import sys
from importlib.metadata import version
print(" | ".join(map(version, sys.argv[1:])))' "${PACKAGES[@]}")
    slug=${name//[^a-z0-9.]/-}
    decoder=$(check "$slug-decoder" "${TESTS[@]}" | tr -d '\n')
    pipeline=$(check "$slug-pipeline" "$PIPELINE" -k "$PARTS" | tr -d '\n')
    [[ $decoder$pipeline == *failed* ]] && failed=1
    table+=$'\n'"| $name | $versions | $decoder | $pipeline |"
done
printf '\n%s\n' "$table" | tee "$LOGS/table.md"
exit $failed
