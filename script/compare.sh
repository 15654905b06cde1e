#!/usr/bin/env bash
# Compares trained drafts, strict and relaxed, with gamma 0 and generate. Writes a folder,
# named by the settings, in $OUTPUT_DIR/$DATASET/comparison.
#   DATASET=beauty DRAFT_MODELS=output/beauty/draft-SFTModel,output/beauty/draft-AtSpeedSModel bash script/compare.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
DRAFT_MODELS=${DRAFT_MODELS:-$OUTPUT_DIR/$DATASET/draft-SFTModel,$OUTPUT_DIR/$DATASET/draft-AtSpeedSModel}
RUN_BEAM_SIZES=${RUN_BEAM_SIZES:-1,3,5,10,20}   # K
DRAFT_BEAM_SIZE=${DRAFT_BEAM_SIZE:-40}          # N, beams drafted a level
GAMMA=${GAMMA:-3}                               # levels drafted a round
VERIFICATIONS=${VERIFICATIONS:-strict,relaxed}  # also coupled
DRAWS=${DRAWS:-1}                               # of each list that is drawn at random
DRAWN_USERS=${DRAWN_USERS:-}                    # users with such lists; empty: all
DECODE_BATCH_SIZE=${DECODE_BATCH_SIZE:-1}       # requests decoded at once; BATCH_SIZE is that of training
SHARE_PREFIX=${SHARE_PREFIX:-false}             # true: read what all prompts begin with once; generate reads it each time
DTYPE=${DTYPE:-float32}
SEED=${SEED:-0}

NUM_PROCESSES=1 launch compare \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --target_model "$TARGET_MODEL" --draft_models "$DRAFT_MODELS" \
    --output_dir "$OUTPUT_DIR/$DATASET/comparison" --run_beam_sizes "$RUN_BEAM_SIZES" \
    --draft_beam_size "$DRAFT_BEAM_SIZE" --gamma "$GAMMA" --verifications "$VERIFICATIONS" --draws "$DRAWS" \
    --drawn_users "$DRAWN_USERS" --batch_size "$DECODE_BATCH_SIZE" --share_prefix "$SHARE_PREFIX" --dtype "$DTYPE" --seed "$SEED" "$@"
