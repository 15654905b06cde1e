#!/usr/bin/env bash
# The paper's comparison: a target, its teacher data, a draft of every class and seed, and the tables.
# Small by default; every stage that is done is kept, so it goes on where it was interrupted.
#   bash script/reproduce.sh                                             # toy data, tiny models, on two cores
#   DATASET=beauty SEEDS="0 1 2" bash script/reproduce.sh
#   ALPHA=0.95 TOP_K=256 OUTPUT_DIR=output/more-alignment bash script/reproduce.sh      # any variable of a stage
#   DATASET=beauty TARGET_BASE=/path/to/llama-7b DRAFT_BASE=/path/to/llama-68m bash script/reproduce.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
[ -z "${BASE_MODEL:-}" ] || fail "BASE_MODEL=$BASE_MODEL: which one? set TARGET_BASE, DRAFT_BASE or both in its place"
export DATASET=${DATASET:-toy} DATA_PATH OUTPUT_DIR LOG_DIR

TARGET_BASE=${TARGET_BASE:-$OUTPUT_DIR/base/target}   # made, tiny and random, where it is not there
DRAFT_BASE=${DRAFT_BASE:-}                            # empty: tiny and random, one a seed
MODEL_CLASSES=${MODEL_CLASSES:-SFTModel WordKDModel TVDKDModel SeqKDModel AtSpeedSModel AtSpeedRModel}
SEEDS=${SEEDS:-0}                                     # of the drafts
FULL=${FULL:-true}                                    # false: LoRA, for a target that has been pre-trained
export HISTORY_LOSS=${HISTORY_LOSS:-true}
TARGET_EPOCHS=${TARGET_EPOCHS:-5}
DRAFT_EPOCHS=${DRAFT_EPOCHS:-3}
export BATCH_SIZE=${BATCH_SIZE:-32} MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-32}
export LEARNING_RATE=${LEARNING_RATE:-2e-3} WARMUP_STEPS=${WARMUP_STEPS:-30}
TEACHER_USERS=${TEACHER_USERS:-}                      # training and validation users that the teacher answers; empty: all
TEST_USERS=${TEST_USERS:-200}                         # to decode with every draft; empty: all

make_base() { [ -d "$1" ] || "$PYTHON" -m atspeed.tools.init_model --output "$1" --shape tiny --layers "$2" --seed "$3"; }
[ "$TARGET_BASE" = "$OUTPUT_DIR/base/target" ] && make_base "$TARGET_BASE" 4 0
echo "== 1/4 fine-tune the target"
TARGET_BASE=$TARGET_BASE FULL=$FULL EPOCHS=$TARGET_EPOCHS bash "$ROOT/script/finetune_llama.sh"
echo "== 2/4 generate the teacher data"
FULL_VOCABULARY=true bash "$ROOT/script/generate_teacher_data.sh" ${TEACHER_USERS:+--max_users "$TEACHER_USERS"}
drafts=
for seed in ${SEEDS//,/ }; do
    base=${DRAFT_BASE:-$OUTPUT_DIR/base/draft-$seed}
    [ -n "$DRAFT_BASE" ] || make_base "$base" 1 "$seed"
    for class in ${MODEL_CLASSES//,/ }; do
        echo "== 3/4 train the draft: $class, seed $seed"
        DRAFT_BASE=$base MODEL_CLASS=$class DRAFT_MODEL_NAME=draft-$class-$seed SEED=$seed EPOCHS=$DRAFT_EPOCHS \
            bash "$ROOT/script/train.sh"
        drafts+=${drafts:+,}$OUTPUT_DIR/$DATASET/draft-$class-$seed
    done
done
echo "== 4/4 compare, checked against generate; and the target with simple recommenders"
DRAFT_MODELS=$drafts bash "$ROOT/script/compare.sh" ${TEST_USERS:+--max_users "$TEST_USERS"} "$@"
bash "$ROOT/script/quality.sh"
