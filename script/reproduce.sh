#!/usr/bin/env bash
# The paper's comparison: targets, their teacher data, a draft of every class and seed for each, and the tables.
# Every stage that is done is kept, so it goes on where it was interrupted.
#   bash script/reproduce.sh                                             # toy data, tiny models, on two cores
#   PRESET=paper DATASET=beauty TARGET_BASE=/path/to/llama-7b DRAFT_BASE=/path/to/llama-68m bash script/reproduce.sh
#   DATASET=beauty TARGET_SEEDS="0 1 2" SEEDS="0 1 2" ALIGNMENT_OVER="trie level" DRAWS=20 bash script/reproduce.sh
#   DRY_RUN=true PRESET=paper … bash script/reproduce.sh                 # prints every command and runs none
set -euo pipefail
source "$(dirname "$0")/common.sh"
[ -z "${BASE_MODEL:-}" ] || fail "BASE_MODEL=$BASE_MODEL: which one? set TARGET_BASE, DRAFT_BASE or both in its place"
for name in EPOCHS BATCH_SIZE LEARNING_RATE WARMUP_STEPS; do
    [ -z "${!name:-}" ] || fail "$name=${!name}: of the target or of the drafts? set TARGET_$name, DRAFT_$name or both in its place"
done
for pair in "ALPHA ALPHAS" "WD WDS" "SEED SEEDS"; do renamed $pair; done
PRESET=${PRESET:-small}        # small: what two cores do; paper: the published settings
[[ $PRESET == small || $PRESET == paper ]] || fail "PRESET=$PRESET: choose small or paper"
DRY_RUN=${DRY_RUN:-false}
export DATASET=${DATASET:-toy} DATA_PATH LOG_DIR

# default NAME SMALL PAPER: what a variable is unless it is set, by preset.
default() { [ -n "${!1+set}" ] || printf -v "$1" %s "$([ "$PRESET" = paper ] && echo "$3" || echo "$2")"; }
#       variable               small    paper
default FULL                   true     false    # weights of the target that are trained: all, or LoRA's
default HISTORY_LOSS           true     false
default TARGET_EPOCHS          5        20
default TARGET_LEARNING_RATE   2e-3     1e-4
default TARGET_BATCH_SIZE      32       256
default TARGET_WARMUP_STEPS    30       100
default DRAFT_EPOCHS           3        20
default DRAFT_LEARNING_RATE    2e-3     1e-3
default DRAFT_BATCH_SIZE       32       64
default DRAFT_WARMUP_STEPS     30       200
default MICRO_BATCH_SIZE       32       16
default ALPHAS                 0.7      "0.1 0.3 0.5 0.7"   # of several, the best by the accepted levels of validation prompts
default WDS                    0.01     "0.01 0.1"          # weight decays of the drafts; the same
default SEEDS                  0        "0 1 2"             # of the drafts
default TARGET_SEEDS           0        0
default DRAWS                  1        20                  # of each relaxed list
default TEST_USERS             200      ""                  # to decode with every draft; empty: all
default DRAFT_BEAM_SIZE        40       40                  # N
default GAMMA                  3        3

TARGET_BASE=${TARGET_BASE:-}                          # empty: random, of TARGET_SHAPE, one a target seed
TARGET_SHAPE=${TARGET_SHAPE:-tiny}
DRAFT_BASE=${DRAFT_BASE:-}                            # empty: random, of one layer of TARGET_SHAPE, one a seed
MODEL_CLASSES=${MODEL_CLASSES:-SFTModel WordKDModel TVDKDModel SeqKDModel AtSpeedSModel AtSpeedRModel}
ALIGNMENT_OVER=${ALIGNMENT_OVER:-trie}                # what AtSpeed's classes compare; of several, a draft each
TEACHER_USERS=${TEACHER_USERS:-}                      # training and validation users that the teacher answers; empty: all
DRAWN_USERS=${DRAWN_USERS:-}                          # of TEST_USERS, those with relaxed lists; empty: all
DECODE_BATCH_SIZE=${DECODE_BATCH_SIZE:-1}             # 1, as in the paper; 64 counts the same, and is done much sooner
RUN_BEAM_SIZES=${RUN_BEAM_SIZES:-1,3,5,10,20}
if [ "$PRESET" = paper ] && [[ -z $TARGET_BASE || -z $DRAFT_BASE ]]; then
    fail "PRESET=paper fine-tunes models that have been pre-trained; set TARGET_BASE and DRAFT_BASE to theirs"
fi

# stage NAME=VALUE… COMMAND…: runs a command in an environment of its own, or prints it.
stage() {
    if [ "$DRY_RUN" = true ]; then printf '%q ' DATASET="$DATASET" DATA_PATH="$DATA_PATH" "$@"; echo; else env "$@"; fi
}
make_base() {   # FOLDER SEED FLAG…
    [ -d "$1" ] || stage "$PYTHON" -m atspeed init-model --output "$1" --seed "$2" --shape "$TARGET_SHAPE" "${@:3}"
}
# train CLASS OVER ALPHA WD SEED: trains a draft, unless it is there, and sets $draft to its folder. OVER "": as the class is defined.
train() {
    local base=${DRAFT_BASE:-$OUTPUT_DIR/base/draft-$5} name=draft-$1${2:+-$2}
    [ -n "$DRAFT_BASE" ] || make_base "$base" "$5" --layers 1
    [[ $ALPHAS == *" "* ]] && [ "$1" != SFTModel ] && name+=-alpha$3
    [[ $WDS == *" "* ]] && name+=-wd$4
    name+=-$5 draft=$target/$DATASET/$name
    echo "== 3/5 target $target_seed: train the draft $name"
    stage OUTPUT_DIR="$target" DRAFT_BASE="$base" MODEL_CLASS="$1" ALIGNMENT_OVER="$2" DRAFT_MODEL_NAME="$name" ALPHA="$3" WD="$4" \
        SEED="$5" EPOCHS="$DRAFT_EPOCHS" BATCH_SIZE="$DRAFT_BATCH_SIZE" LEARNING_RATE="$DRAFT_LEARNING_RATE" \
        WARMUP_STEPS="$DRAFT_WARMUP_STEPS" MICRO_BATCH_SIZE="$MICRO_BATCH_SIZE" bash "$ROOT/script/train.sh"
}
# search CLASS OVER SEED: sets $alpha and $wd to what trains the best draft.
search() {
    local best=-1 found each_alpha each_wd alphas=$ALPHAS
    [ "$1" = SFTModel ] && alphas=${ALPHAS%% *}   # it has none
    alpha=${alphas%% *} wd=${WDS%% *}
    [[ "$alphas $WDS" == *" "*" "* ]] || return 0
    for each_alpha in $alphas; do
        for each_wd in $WDS; do
            train "$1" "$2" "$each_alpha" "$each_wd" "$3"
            [ "$DRY_RUN" = false ] || continue
            found=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["results"]["eval_accepted"])' "$draft/facts.json")
            if "$PYTHON" -c 'import sys; sys.exit(float(sys.argv[1]) <= float(sys.argv[2]))' "$found" "$best"; then
                best=$found alpha=$each_alpha wd=$each_wd
            fi
        done
    done
    echo "$1${2:+ over the $2}: alpha $alpha, weight decay $wd$([ "$DRY_RUN" = false ] || echo ', or what validation says')"
}

widest=trie
for over in $ALIGNMENT_OVER; do
    [[ $over == trie || $over == level || $over == vocabulary ]] || fail "ALIGNMENT_OVER=$ALIGNMENT_OVER: choose from trie, level and vocabulary"
    [[ $over == level ]] && widest=level   # the vocabulary would be some 4 MB a prompt; the live target says it
done
comparisons= baselines=${BASELINES:-}
shown=$(mktemp)   # what compare.sh says, which ends with where its tables are
trap 'rm -f "$shown"' EXIT
for target_seed in ${TARGET_SEEDS//,/ }; do
    target=$OUTPUT_DIR/target-$target_seed drafts=
    base=${TARGET_BASE:-$OUTPUT_DIR/base/target-$target_seed}
    [ -n "$TARGET_BASE" ] || make_base "$base" "$target_seed"
    echo "== 1/5 target $target_seed: fine-tune it"
    stage OUTPUT_DIR="$target" TARGET_BASE="$base" FULL="$FULL" HISTORY_LOSS="$HISTORY_LOSS" SEED="$target_seed" \
        EPOCHS="$TARGET_EPOCHS" BATCH_SIZE="$TARGET_BATCH_SIZE" LEARNING_RATE="$TARGET_LEARNING_RATE" \
        WARMUP_STEPS="$TARGET_WARMUP_STEPS" MICRO_BATCH_SIZE="$MICRO_BATCH_SIZE" bash "$ROOT/script/finetune_llama.sh"
    echo "== 2/5 target $target_seed: generate the teacher data"
    stage OUTPUT_DIR="$target" ALIGNMENT_OVER="$widest" FULL_VOCABULARY=true \
        bash "$ROOT/script/generate_teacher_data.sh" ${TEACHER_USERS:+--max_users "$TEACHER_USERS"}
    for class in ${MODEL_CLASSES//,/ }; do
        overs=-
        [[ $class == AtSpeed* ]] && overs=$ALIGNMENT_OVER
        for over in $overs; do
            [[ $over == - || $over == trie ]] && over=   # the default
            seeds=${SEEDS//,/ }
            search "$class" "$over" "${seeds%% *}"
            for seed in $seeds; do
                train "$class" "$over" "$alpha" "$wd" "$seed"
                drafts+=${drafts:+,}$draft
            done
        done
    done
    echo "== 4/5 target $target_seed: compare its drafts, checked against generate; and it with simple recommenders"
    stage OUTPUT_DIR="$target" DRAFT_MODELS="$drafts" RUN_BEAM_SIZES="$RUN_BEAM_SIZES" DRAFT_BEAM_SIZE="$DRAFT_BEAM_SIZE" GAMMA="$GAMMA" \
        DRAWS="$DRAWS" DRAWN_USERS="$DRAWN_USERS" DECODE_BATCH_SIZE="$DECODE_BATCH_SIZE" \
        bash "$ROOT/script/compare.sh" ${TEST_USERS:+--max_users "$TEST_USERS"} "$@" | tee "$shown"
    comparisons+=${comparisons:+,}$(tr '\r' '\n' < "$shown" | sed -nE 's/^written to //p; s/^(.*): done already.*/\1/p' | tail -n 1)
    stage OUTPUT_DIR="$target" BASELINES="$baselines" bash "$ROOT/script/quality.sh"
    baselines=popularity   # the others are not the target's; once will do
done
echo "== 5/5 one table of all targets"
stage "$PYTHON" -m atspeed combine --comparisons "${comparisons:-$OUTPUT_DIR/target-…/$DATASET/comparison/…}" \
    --output_dir "$OUTPUT_DIR/$DATASET/comparison"
