#!/usr/bin/env bash
# recommend.sh on Ray: on a cluster that is there (ADDRESS=auto, or ray://HOST:10001), or on this machine. Same files, and
# run again, by either, it goes on where it was killed. Needs: pip install -e ".[pipeline,ray]"
#   INPUT=users.parquet OUTPUT=/shared/lists ADDRESS=auto ACTORS=8 GPUS_PER_ACTOR=0.5 bash script/recommend_ray.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
DRAFT_MODEL=${DRAFT_MODEL-}                     # empty: none; tree attention and the trie alone
INPUT=${INPUT:-}                                # JSON lines, CSV or Parquet of user, history; empty: a split of DATASET
SPLIT=${SPLIT:-test}
OUTPUT=${OUTPUT:-$OUTPUT_DIR/$DATASET/lists}    # a folder that all machines see
INDEX=${INDEX:-}                                # identifier index whose items are listed in place of the target's own
RAW_IDS=${RAW_IDS:-}                            # Parquet or CSV of raw_id, item: histories and lists hold raw ids
K=${K:-20}
EXCLUDE_SEEN=${EXCLUDE_SEEN:-false}             # true: no list holds an item of its history
STOP_LIST=${STOP_LIST:-}                        # file of items that stand in no list
ON_UNKNOWN=${ON_UNKNOWN:-error}                 # skip: leave out items that the catalogue lacks
DECODE_BATCH_SIZE=${DECODE_BATCH_SIZE:-64}      # users decoded at once, of one actor
DTYPE=${DTYPE:-float32}
ADDRESS=${ADDRESS:-}                            # of a cluster; empty: Ray is started on this machine
ACTORS=${ACTORS:-1}                             # processes that decode
GPUS_PER_ACTOR=${GPUS_PER_ACTOR:-0}             # a share of a GPU, such as 0.5; 0: on the CPU
CPUS_PER_ACTOR=${CPUS_PER_ACTOR:-0.5}           # that Ray reserves; it needs some for its own tasks

of=(--histories "$INPUT")
[ -n "$INPUT" ] || of=(--dataset "$DATASET" --data_path "$DATA_PATH" --split "$SPLIT")
NUM_PROCESSES=1 NUM_MACHINES=1 launch recommend --engine ray \
    --target_model "$TARGET_MODEL" --draft_model "$DRAFT_MODEL" "${of[@]}" --output_dir "$OUTPUT" --index "$INDEX" \
    --raw_ids "$RAW_IDS" --k "$K" --exclude_seen "$EXCLUDE_SEEN" --stop_list "$STOP_LIST" --on_unknown "$ON_UNKNOWN" \
    --batch_size "$DECODE_BATCH_SIZE" --dtype "$DTYPE" --address "$ADDRESS" --actors "$ACTORS" \
    --gpus_per_actor "$GPUS_PER_ACTOR" --cpus_per_actor "$CPUS_PER_ACTOR" "$@"
