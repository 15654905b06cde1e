#!/usr/bin/env bash
# Takes a model that was fine-tuned elsewhere as the target. Writes $OUTPUT_DIR/$DATASET/target, as stage 1 would have.
#   MODEL=/path/to/lc-rec DATASET=beauty bash script/adopt.sh [--flag value …]
#   MODEL=/path/to/adapter BASE=/path/to/base PROMPT_TEMPLATE=prompt.txt DATASET=mine bash script/adopt.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
MODEL=${MODEL:-}                             # a decoder-only model with its tokenizer, or a LoRA adapter
BASE=${BASE:-}                               # of the adapter, if it is not where the adapter says
INDEX=${INDEX:-}                             # identifiers, JSON; empty: the one of the data set
PROMPT_TEMPLATE=${PROMPT_TEMPLATE:-}         # text file with {history}; empty: LC-Rec's prompt
ITEM_SEPARATOR=${ITEM_SEPARATOR-, }          # between two items of a history
CHAT_TEMPLATE=${CHAT_TEMPLATE:-false}        # true: the prompt is what the user says in the tokenizer's chat template
DTYPE=${DTYPE:-float32}
[ -n "$MODEL" ] || fail "MODEL= is empty; set it to the folder of the model"

NUM_PROCESSES=1 launch adopt \
    --model "$MODEL" --base_model "$BASE" --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" \
    --output_dir "$OUTPUT_DIR/$DATASET/target" --prompt_template "$PROMPT_TEMPLATE" \
    --item_separator "$ITEM_SEPARATOR" --chat_template "$CHAT_TEMPLATE" --dtype "$DTYPE" "$@"
