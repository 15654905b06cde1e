#!/usr/bin/env bash
# Stage 4: speculative decoding against gamma 0 and generate. Writes a folder, named by the settings, in
# $OUTPUT_DIR/$DATASET/results/$DRAFT_MODEL_NAME, or without a draft in …/results/no-draft.
#   DATASET=beauty DRAFT_MODEL_NAME=draft-AtSpeedRModel bash script/inference.sh [--flag value …]
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
DRAFT_MODEL_NAME=${DRAFT_MODEL_NAME:-draft-AtSpeedSModel}
DRAFT_MODEL=${DRAFT_MODEL-$OUTPUT_DIR/$DATASET/$DRAFT_MODEL_NAME}   # empty: tree attention alone
RESULTS=$DRAFT_MODEL_NAME
[ -n "$DRAFT_MODEL" ] || RESULTS=no-draft
STOP_LIST=${STOP_LIST:-}                        # a file of items, one a line, that are not to be recommended
RUN_BEAM_SIZES=${RUN_BEAM_SIZES:-1,3,5,10,20}   # K, one after the other
DRAFT_BEAM_SIZE=${DRAFT_BEAM_SIZE:-40}          # N, beams drafted a level
GAMMA=${GAMMA:-3}                               # levels drafted a round
BATCH_SIZE=${BATCH_SIZE:-1}                     # requests decoded at once
DTYPE=${DTYPE:-float32}                         # lists are checked to be equal in float32, compared in others
SEED=${SEED:-0}

launch inference \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --target_model "$TARGET_MODEL" --draft_model "$DRAFT_MODEL" \
    --output_dir "$OUTPUT_DIR/$DATASET/results/$RESULTS" --run_beam_sizes "$RUN_BEAM_SIZES" \
    --draft_beam_size "$DRAFT_BEAM_SIZE" --gamma "$GAMMA" --batch_size "$BATCH_SIZE" \
    --stop_list "$STOP_LIST" --dtype "$DTYPE" --seed "$SEED" "$@"
