#!/usr/bin/env bash
# Recall and NDCG of the target beside simple baselines, same users and labels. Writes a
# folder, named by the settings, in $OUTPUT_DIR/$DATASET/quality.
#   DATASET=beauty bash script/quality.sh [--flag value …]
#   TARGET_MODEL= BASELINES=popularity,SASRec bash script/quality.sh      # the baselines alone
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}   # empty: none
BASELINES=${BASELINES:-}                                   # such as popularity,SASRec; empty: all
SPLIT=${SPLIT:-test}                                       # valid: to choose among targets without a look at test
BEAM_SIZE=${BEAM_SIZE:-20}                                 # K, the length of the lists
BATCH_SIZE=${BATCH_SIZE:-32}                               # prompts decoded at once, of one process
EXCLUDE_SEEN=${EXCLUDE_SEEN:-false}                        # true: no list holds an item of its user's history
DTYPE=${DTYPE:-float32}
SEED=${SEED:-0}

launch quality \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --target_model "$TARGET_MODEL" \
    --output_dir "$OUTPUT_DIR/$DATASET/quality" ${BASELINES:+--baselines "$BASELINES"} --split "$SPLIT" \
    --beam_size "$BEAM_SIZE" --batch_size "$BATCH_SIZE" --exclude_seen "$EXCLUDE_SEEN" --dtype "$DTYPE" --seed "$SEED" "$@"
