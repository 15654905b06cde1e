#!/usr/bin/env bash
# Recommend K items to every user of a file, or of a split of a data set. Writes Parquet files of user, items and scores;
# run again, it goes on where it was killed.
#   INPUT=users.jsonl OUTPUT=lists bash script/recommend.sh [--flag value …]     # {"user": "u1", "history": [12, 7, 99]}
#   DATASET=beauty SPLIT=test bash script/recommend.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
DRAFT_MODEL=${DRAFT_MODEL-}                     # empty: none; tree attention and the trie alone
INPUT=${INPUT:-}                                # JSON lines, CSV or Parquet of user, history; empty: a split of DATASET
SPLIT=${SPLIT:-test}
OUTPUT=${OUTPUT:-$OUTPUT_DIR/$DATASET/lists}    # a folder
INDEX=${INDEX:-}                                # identifier index whose items are listed in place of the target's own
RAW_IDS=${RAW_IDS:-}                            # Parquet or CSV of raw_id, item: histories and lists hold raw ids
K=${K:-20}
EXCLUDE_SEEN=${EXCLUDE_SEEN:-false}             # true: no list holds an item of its history
STOP_LIST=${STOP_LIST:-}                        # file of items that stand in no list
ON_UNKNOWN=${ON_UNKNOWN:-error}                 # skip: leave out items that the catalogue lacks
DECODE_BATCH_SIZE=${DECODE_BATCH_SIZE:-64}      # users decoded at once, of one process
DTYPE=${DTYPE:-float32}

of=(--histories "$INPUT")
[ -n "$INPUT" ] || of=(--dataset "$DATASET" --data_path "$DATA_PATH" --split "$SPLIT")
launch recommend \
    --target_model "$TARGET_MODEL" --draft_model "$DRAFT_MODEL" "${of[@]}" --output_dir "$OUTPUT" --index "$INDEX" --raw_ids "$RAW_IDS" \
    --k "$K" --exclude_seen "$EXCLUDE_SEEN" --stop_list "$STOP_LIST" --on_unknown "$ON_UNKNOWN" \
    --batch_size "$DECODE_BATCH_SIZE" --dtype "$DTYPE" "$@"
