#!/usr/bin/env bash
# Curves over one parameter: accepted levels, speed-ups, where the time goes, acceptance by level; one CSV and one PNG in
# $OUTPUT_DIR/$DATASET/sweep. Drafts that are not there yet are trained, with the variables of script/train.sh.
#   DATASET=beauty PARAMETER=draft_beam_size VALUES="20 40 80" bash script/sweep.sh
#   DATASET=beauty PARAMETER=alpha VALUES="0.1 0.3 0.5 0.7" DRAFT_BASE=… bash script/sweep.sh
#   DATASET=beauty PARAMETER=layers VALUES="1 2 4" bash script/sweep.sh     # random drafts of so many layers, trained
set -euo pipefail
source "$(dirname "$0")/common.sh"

export DATASET=${DATASET:-toy} DATA_PATH OUTPUT_DIR LOG_DIR
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
PARAMETER=${PARAMETER:-draft_beam_size}         # draft_beam_size (N), gamma, alpha, or layers (of the draft)
MODEL_CLASS=${MODEL_CLASS:-AtSpeedSModel}
DRAFT_MODEL_NAME=${DRAFT_MODEL_NAME:-draft-$MODEL_CLASS}   # of a sweep over alpha or layers, what the names begin with
DRAFT_SHAPE=${DRAFT_SHAPE:-tiny}                # of a sweep over layers
RUN_BEAM_SIZES=${RUN_BEAM_SIZES:-1,5,10,20}     # K
DRAFT_BEAM_SIZE=${DRAFT_BEAM_SIZE:-40}          # N
GAMMA=${GAMMA:-3}
DECODE_BATCH_SIZE=${DECODE_BATCH_SIZE:-1}       # requests decoded at once; BATCH_SIZE is that of training
TEST_USERS=${TEST_USERS:-50}                    # empty: all
DTYPE=${DTYPE:-float32}
SEED=${SEED:-0}
case $PARAMETER in
    draft_beam_size) VALUES=${VALUES:-20,40,80} ;;
    gamma) VALUES=${VALUES:-1,2,3} ;;
    alpha) VALUES=${VALUES:-0.1,0.3,0.5,0.7} ;;
    layers) VALUES=${VALUES:-1,2,4} ;;
    *) fail "PARAMETER=$PARAMETER: choose draft_beam_size, gamma, alpha or layers" ;;
esac
VALUES=$(tr -s ' ,' ',' <<< "$VALUES")

drafts=$OUTPUT_DIR/$DATASET/$DRAFT_MODEL_NAME
if [[ $PARAMETER == alpha || $PARAMETER == layers ]]; then
    drafts=
    for value in ${VALUES//,/ }; do
        name=$DRAFT_MODEL_NAME-$PARAMETER$value
        drafts+=${drafts:+,}$OUTPUT_DIR/$DATASET/$name
        if [ "$PARAMETER" = alpha ]; then
            ALPHA=$value DRAFT_MODEL_NAME=$name MODEL_CLASS=$MODEL_CLASS bash "$ROOT/script/train.sh"
        else
            base=$OUTPUT_DIR/base/draft-$DRAFT_SHAPE-$value-$SEED
            [ -d "$base" ] || launch init-model --output "$base" --shape "$DRAFT_SHAPE" --layers "$value" --seed "$SEED"
            DRAFT_BASE=$base DRAFT_MODEL_NAME=$name MODEL_CLASS=$MODEL_CLASS bash "$ROOT/script/train.sh"
        fi
    done
fi
NUM_PROCESSES=1 launch sweep \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --target_model "$TARGET_MODEL" --draft_models "$drafts" \
    --output_dir "$OUTPUT_DIR/$DATASET/sweep" --parameter "$PARAMETER" --values "$VALUES" \
    --run_beam_sizes "$RUN_BEAM_SIZES" --draft_beam_size "$DRAFT_BEAM_SIZE" --gamma "$GAMMA" \
    --batch_size "$DECODE_BATCH_SIZE" --max_users "$TEST_USERS" --dtype "$DTYPE" --seed "$SEED" "$@"
