#!/usr/bin/env bash
# SpecGR_Aux and SpecGR++ beside TIGER and the drafters alone. Writes {output_dir}/{dataset}/results/$EVAL_MODE.
#   CONFIG=code/specgr/configs/games.yaml bash script/specgr_inference.sh \
#       [--draft_size 50] [--num_beams 30] [--threshold -1.4] [--max_eval_steps 1.0] …
# DATA_PATH, OUTPUT_DIR and INDEX, where set, stand for --data_path, --output_dir and --index.
# The trade-off over all three: python -m specgr.sweep --config $CONFIG
set -euo pipefail
HERE=(${DATA_PATH:+--data_path "$DATA_PATH"} ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} ${INDEX:+--index "$INDEX"})
source "$(dirname "$0")/common.sh"

CONFIG=${CONFIG:-$ROOT/code/specgr/configs/toy.yaml}
EVAL_MODE=${EVAL_MODE:-test}          # or valid
BATCH_SIZE=${BATCH_SIZE:-64}          # requests decoded at once

NUM_PROCESSES=1 NUM_MACHINES=1 launch specgr.run \
    --config "$CONFIG" --eval_mode "$EVAL_MODE" --batch_size "$BATCH_SIZE" "${HERE[@]}" "$@"
