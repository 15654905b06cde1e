#!/usr/bin/env bash
# Times every way to decode, lists checked to be equal first. Writes a folder, named by the
# settings, in $OUTPUT_DIR/$DATASET/benchmark.
#   DATASET=beauty RUN_BEAM_SIZES=1,5,20 BATCH_SIZES=1,8 bash script/benchmark.sh [--flag value …]
#   TARGET_MODEL= DRAFT_MODEL= SHAPE=llama-160m bash script/benchmark.sh      # random weights of a shape, no checkpoint
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}         # empty: random weights of SHAPE
DRAFT_MODEL_NAME=${DRAFT_MODEL_NAME:-draft-AtSpeedSModel}
DRAFT_MODEL=${DRAFT_MODEL-$OUTPUT_DIR/$DATASET/$DRAFT_MODEL_NAME}   # empty: DRAFT_SHAPE, or no draft
SHAPE=${SHAPE:-}
DRAFT_SHAPE=${DRAFT_SHAPE:-}
METHODS=${METHODS:-}                            # empty: all (captured ones on a GPU only)
RUN_BEAM_SIZES=${RUN_BEAM_SIZES:-1,3,5,10,20}   # K
BATCH_SIZES=${BATCH_SIZES:-1,8}                 # requests decoded at once
DTYPES=${DTYPES:-float32}                       # of float32, bfloat16, float16
GAMMA=${GAMMA:-3}                               # levels that a draft model drafts a round
SHARE_PREFIX=${SHARE_PREFIX:-true}               # read what all prompts begin with once; generate reads it each time
REQUESTS=${REQUESTS:-20}
VLLM_PYTHON=${VLLM_PYTHON:-}                     # an interpreter with vLLM, whose beam search takes turns with ours; empty: none
SEED=${SEED:-0}

NUM_PROCESSES=1 launch benchmark \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --target_model "$TARGET_MODEL" --draft_model "$DRAFT_MODEL" \
    --shape "$SHAPE" --draft_shape "$DRAFT_SHAPE" --output_dir "$OUTPUT_DIR/$DATASET/benchmark" \
    --methods "$METHODS" --run_beam_sizes "$RUN_BEAM_SIZES" --batch_sizes "$BATCH_SIZES" --dtypes "$DTYPES" \
    --gamma "$GAMMA" --share_prefix "$SHARE_PREFIX" --requests "$REQUESTS" --vllm_python "$VLLM_PYTHON" --seed "$SEED" "$@"
