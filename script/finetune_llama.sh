#!/usr/bin/env bash
# Stage 1: fine-tune the target. Writes $OUTPUT_DIR/$DATASET/target.
#   TARGET_BASE=/path/to/llama-7b DATASET=beauty bash script/finetune_llama.sh [--flag value …]
set -euo pipefail
source "$(dirname "$0")/common.sh"
renamed BASE_MODEL TARGET_BASE

DATASET=${DATASET:-toy}
INDEX=${INDEX:-}   # identifier index; empty: the only one in the folder of the data set
TARGET_BASE=${TARGET_BASE:-$ROOT/model/tiny} # any decoder-only model: a folder, or a Hugging Face name
FULL=${FULL:-false}                          # true: all weights, false: LoRA
LORA_R=${LORA_R:-8}
LORA_ALPHA=${LORA_ALPHA:-16}
LORA_DROPOUT=${LORA_DROPOUT:-0.05}
LORA_MODULES=${LORA_MODULES:-q_proj,v_proj}  # linear layers that LoRA adapts
ITEM_ROWS=${ITEM_ROWS:-random}               # level: the item tokens' rows begin as a letter for their level, plus noise
EPOCHS=${EPOCHS:-20}
PATIENCE=${PATIENCE:-5}
BATCH_SIZE=${BATCH_SIZE:-256}                # over all processes
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-16}     # of one process, one step
LEARNING_RATE=${LEARNING_RATE:-1e-4}
WARMUP_STEPS=${WARMUP_STEPS:-100}
SUBSEQ=${SUBSEQ:-false}                      # true: every prefix of a history is a sample
HISTORY_LOSS=${HISTORY_LOSS:-false}          # true: the items of the history are learnt too, in the same forward
PROMPT_TEMPLATE=${PROMPT_TEMPLATE:-}         # text file with {history}; empty: LC-Rec's prompt. Later stages read it with the target
ITEM_SEPARATOR=${ITEM_SEPARATOR-, }          # between two items of a history
CHAT_TEMPLATE=${CHAT_TEMPLATE:-false}        # true: the prompt is what the user says in the tokenizer's chat template
DTYPE=${DTYPE:-float32}                      # of the weights
MIXED_PRECISION=${MIXED_PRECISION:-}         # bf16, fp16 or no; empty: bf16 on a GPU that has it
LOAD_IN_8BIT=${LOAD_IN_8BIT:-false}          # true: LoRA on a base of 8 bits, with bitsandbytes on a GPU
LOAD_IN_4BIT=${LOAD_IN_4BIT:-false}          # true: of 4 bits
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-false}   # true: less memory, a third more time
SAVE_STEPS=${SAVE_STEPS:-0}                  # steps between checkpoints within an epoch; 0: one an epoch
SEED=${SEED:-0}
REPORT_TO=${REPORT_TO:-none}                 # wandb, tensorboard or none

launch finetune \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --base_model "$TARGET_BASE" \
    --output_dir "$OUTPUT_DIR/$DATASET/target" --full "$FULL" \
    --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" --lora_dropout "$LORA_DROPOUT" --lora_modules "$LORA_MODULES" \
    --item_rows "$ITEM_ROWS" \
    --epochs "$EPOCHS" --patience "$PATIENCE" --batch_size "$BATCH_SIZE" --micro_batch_size "$MICRO_BATCH_SIZE" \
    --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP_STEPS" --subseq "$SUBSEQ" --history_loss "$HISTORY_LOSS" \
    --prompt_template "$PROMPT_TEMPLATE" --item_separator "$ITEM_SEPARATOR" --chat_template "$CHAT_TEMPLATE" \
    --dtype "$DTYPE" --mixed_precision "$MIXED_PRECISION" --load_in_8bit "$LOAD_IN_8BIT" \
    --load_in_4bit "$LOAD_IN_4BIT" --gradient_checkpointing "$GRADIENT_CHECKPOINTING" --save_steps "$SAVE_STEPS" \
    --seed "$SEED" --report_to "$REPORT_TO" "$@"
