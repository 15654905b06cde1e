#!/usr/bin/env bash
# Train TIGER, UniSRec, SASRec_T and both stages of SpecGR++. Writes {output_dir}/{dataset}/{tiger,unisrec,sasrec_t,stage1,stage2}.
#   CONFIG=code/specgr/configs/games.yaml bash script/specgr_train.sh [--stages tiger,stage1] [--stage1.epochs 50] …
# Every key of the configuration is a flag; DATA_PATH, OUTPUT_DIR and INDEX, where set, stand for --data_path, --output_dir and --index.
set -euo pipefail
HERE=(${DATA_PATH:+--data_path "$DATA_PATH"} ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} ${INDEX:+--index "$INDEX"})
source "$(dirname "$0")/common.sh"

CONFIG=${CONFIG:-$ROOT/code/specgr/configs/toy.yaml}
STAGES=${STAGES:-tiger,unisrec,sasrec_t,stage1,stage2}

launch specgr.train --config "$CONFIG" --stages "$STAGES" "${HERE[@]}" "$@"
