#!/usr/bin/env bash
# From raw reviews to splits: Amazon 2014, 2018, 2023, or any JSON lines, CSV, Parquet. Writes $DATA_PATH/$DATASET.
#   INPUT=reviews_Beauty_5.json.gz DATASET=my-beauty bash script/process_data.sh [--flag value …]
#   INPUT='ratings/*.csv' DATASET=mine bash script/process_data.sh --user uid --item sku --timestamp when
set -euo pipefail
source "$(dirname "$0")/common.sh"

INPUT=${INPUT:-}                        # files, or globs in quotes, separated by commas
DATASET=${DATASET:-}                    # the folder's name
MIN_RATING=${MIN_RATING-4}              # empty: whatever the rating
USER_CORE=${USER_CORE:-0}               # interactions that a user, or an item, must have; 0: any number
ITEM_CORE=${ITEM_CORE:-0}
RATIOS=${RATIOS:-8,1,1}                 # training, validation, test; by global time
MIN_TRAIN_ITEMS=${MIN_TRAIN_ITEMS:-2}   # users with fewer training items are dropped

[ -n "$INPUT" ] && [ -n "$DATASET" ] || { echo "error: set INPUT to raw files and DATASET to a new name" >&2; exit 2; }
NUM_PROCESSES=1 NUM_MACHINES=1 launch process-data \
    --input "$INPUT" --output "$DATA_PATH/$DATASET" --min_rating "$MIN_RATING" --user_core "$USER_CORE" \
    --item_core "$ITEM_CORE" --ratios "$RATIOS" --min_train_items "$MIN_TRAIN_ITEMS" "$@"
