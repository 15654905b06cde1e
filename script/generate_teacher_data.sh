#!/usr/bin/env bash
# Stage 2: the target's own beams for every prompt. Writes $OUTPUT_DIR/$DATASET/{train,eval}_teacher_data.
#   DATASET=beauty bash script/generate_teacher_data.sh [--flag value …]
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
BEAM_SIZE=${BEAM_SIZE:-20}
BATCH_SIZE=${BATCH_SIZE:-16}                    # prompts decoded at once, of one process
ALIGNMENT_OVER=${ALIGNMENT_OVER:-trie}          # what is kept along the beams: of the trie, the level or the vocabulary
FULL_VOCABULARY=${FULL_VOCABULARY:-false}       # true: also what WordKDModel and TVDKDModel need
SUBSEQ=${SUBSEQ:-false}
DTYPE=${DTYPE:-float32}
SEED=${SEED:-0}

launch teacher \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --target_model "$TARGET_MODEL" --output_dir "$OUTPUT_DIR/$DATASET" \
    --beam_size "$BEAM_SIZE" --batch_size "$BATCH_SIZE" --alignment_over "$ALIGNMENT_OVER" \
    --full_vocabulary "$FULL_VOCABULARY" --subseq "$SUBSEQ" \
    --dtype "$DTYPE" --seed "$SEED" "$@"
