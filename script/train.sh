#!/usr/bin/env bash
# Stage 3: train the draft. Writes $OUTPUT_DIR/$DATASET/$DRAFT_MODEL_NAME.
#   DRAFT_BASE=/path/to/llama-68m MODEL_CLASS=AtSpeedRModel DATASET=beauty bash script/train.sh [--flag value …]
set -euo pipefail
source "$(dirname "$0")/common.sh"
renamed BASE_MODEL DRAFT_BASE

DATASET=${DATASET:-toy}
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
DRAFT_BASE=${DRAFT_BASE:-$ROOT/model/tiny-draft}   # any depth, with the target's tokenizer
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
MODEL_CLASS=${MODEL_CLASS:-AtSpeedSModel}          # SFTModel WordKDModel TVDKDModel SeqKDModel AtSpeedSModel AtSpeedRModel
DRAFT_MODEL_NAME=${DRAFT_MODEL_NAME:-draft-$MODEL_CLASS}
TRAIN_DATA=${TRAIN_DATA:-$OUTPUT_DIR/$DATASET/train_teacher_data}
VALID_DATA=${VALID_DATA:-$OUTPUT_DIR/$DATASET/eval_teacher_data}
ALPHA=${ALPHA:-0.7}                                # share of the alignment loss
TEMPERATURE=${TEMPERATURE:-1.0}                    # of both softmaxes in the alignment loss
TOP_K=${TOP_K:-20}                                 # bets that AtSpeedSModel compares
ALIGNMENT_OVER=${ALIGNMENT_OVER:-}                 # compared tokens: trie, level or vocabulary; empty: as MODEL_CLASS is defined
CONSTRAINED_ALIGNMENT=${CONSTRAINED_ALIGNMENT:-}   # false: as ALIGNMENT_OVER=vocabulary
CONSTRAINED_SOFTMAX=${CONSTRAINED_SOFTMAX:-}       # renormalise over them; empty: unless it is the vocabulary
DENSITY=${DENSITY:-true}                           # false: AtSpeedSModel without its second term
R_ORIGINAL=${R_ORIGINAL:-0}                        # share of batches aligned on the true item's prefix
R_STUDENT=${R_STUDENT:-0}                          # share of batches aligned on the draft's own beams
SELECT_BY=${SELECT_BY:-accepted}                   # what the best draft is known by: accepted (levels) or eval_loss
SELECT_USERS=${SELECT_USERS:-200}                  # validation prompts decoded after each epoch; 0: none
SELECT_BEAM_SIZE=${SELECT_BEAM_SIZE:-10}           # K of that; the draft width is 2 K
EPOCHS=${EPOCHS:-20}
PATIENCE=${PATIENCE:-5}
BATCH_SIZE=${BATCH_SIZE:-256}                      # over all processes
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-16}           # of one process, one step
LEARNING_RATE=${LEARNING_RATE:-1e-3}
WARMUP_STEPS=${WARMUP_STEPS:-100}
WD=${WD:-0.01}                                     # weight decay
DTYPE=${DTYPE:-float32}                            # of the weights
MIXED_PRECISION=${MIXED_PRECISION:-}               # bf16, fp16 or no; empty: bf16 on a GPU that has it
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-false}   # true: less memory, a third more time
SAVE_STEPS=${SAVE_STEPS:-0}                        # steps between checkpoints within an epoch; 0: one an epoch
SEED=${SEED:-0}
REPORT_TO=${REPORT_TO:-none}                       # wandb, tensorboard or none

launch train \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --model_class "$MODEL_CLASS" --base_model "$DRAFT_BASE" \
    --target_model "$TARGET_MODEL" --train_data "$TRAIN_DATA" --valid_data "$VALID_DATA" \
    --output_dir "$OUTPUT_DIR/$DATASET/$DRAFT_MODEL_NAME" \
    --alpha "$ALPHA" --temperature "$TEMPERATURE" --top_k "$TOP_K" \
    --alignment_over "$ALIGNMENT_OVER" --constrained_alignment "$CONSTRAINED_ALIGNMENT" \
    --constrained_softmax "$CONSTRAINED_SOFTMAX" --density "$DENSITY" \
    --r_original "$R_ORIGINAL" --r_student "$R_STUDENT" \
    --select_by "$SELECT_BY" --select_users "$SELECT_USERS" --select_beam_size "$SELECT_BEAM_SIZE" \
    --epochs "$EPOCHS" --patience "$PATIENCE" --batch_size "$BATCH_SIZE" --micro_batch_size "$MICRO_BATCH_SIZE" \
    --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP_STEPS" --weight_decay "$WD" \
    --dtype "$DTYPE" --mixed_precision "$MIXED_PRECISION" --gradient_checkpointing "$GRADIENT_CHECKPOINTING" \
    --save_steps "$SAVE_STEPS" --seed "$SEED" --report_to "$REPORT_TO" "$@"
