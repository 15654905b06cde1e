#!/usr/bin/env bash
# SpecGR's data: Amazon Reviews 2023 of a category, cut at absolute timestamps. Writes $DATA_PATH/$CATEGORY; with ENCODER,
# also text embeddings and identifiers of its items, the published ones by default: an RQ-VAE fitted on training items.
#   CATEGORY=Office_Products ENCODER=/path/to/sentence-t5-base bash script/specgr_process_data.sh [--flag value …]
# Flags are those of build_index.sh with ENCODER, else of specgr.process_data (--overwrite makes the data anew, or, with
# ENCODER, the identifiers alone). Killed, it goes on where it was.
# A folder of the AtSpeed layout, such as Beauty, needs none of this.
set -euo pipefail
source "$(dirname "$0")/common.sh"

CATEGORY=${CATEGORY:-Video_Games}                              # or Office_Products, Cell_Phones_and_Accessories, …
SOURCE=${SOURCE:-hf://datasets/McAuley-Lab/Amazon-Reviews-2023}   # or a folder with its files
ENCODER=${ENCODER:-}                                           # folder of any Hugging Face encoder
case $CATEGORY in
    Office_Products) CODES=256 ;;
    Cell_Phones_and_Accessories) CODES=288 ;;
    *) CODES=144 ;;
esac
export CODEBOOKS=${CODEBOOKS:-$CODES,$CODES,$CODES}            # these and all other variables of build_index.sh
export HIDDEN=${HIDDEN:-2048,1024,512,256} LATENT=${LATENT:-128} WARMUP_EPOCHS=${WARMUP_EPOCHS:-0}
export EPOCHS=${EPOCHS:-10000} BATCH_SIZE=${BATCH_SIZE:-2048}
export OPTIMIZER=${OPTIMIZER:-adagrad} LEARNING_RATE=${LEARNING_RATE:-1e-3} FIT_ON=${FIT_ON:-train} DISTINCT=${DISTINCT:-digit}

FLAGS=("$@")
[ -n "$ENCODER" ] && FLAGS=()
NUM_PROCESSES=1 NUM_MACHINES=1 launch specgr.process_data \
    --category "$CATEGORY" --source "$SOURCE" --output "$DATA_PATH/$CATEGORY" "${FLAGS[@]}"
if [ -z "$ENCODER" ]; then
    echo "identifiers are missing, and text embeddings for UniSRec: ENCODER=/path/to/encoder bash $0"
    exit
fi
DATASET=$CATEGORY ITEMS=$DATA_PATH/$CATEGORY/items.parquet bash "$ROOT/script/build_index.sh" \
    --weight_decay 0 --eval_epochs 50 "$@"
