#!/usr/bin/env bash
# From raw interactions to splits: Amazon 2014, 2018, 2023, LC-Rec, RecBole, sequences, well-known data sets, or any JSON
# lines, CSV, Parquet. Writes $DATA_PATH/$DATASET. docs/your-data.md has a row for each format.
#   INPUT=reviews_Beauty_5.json.gz DATASET=my-beauty bash script/process_data.sh [--flag value …]
#   INPUT=Instruments.inter.json DATASET=instruments bash script/process_data.sh
#   FORMAT=ml-1m SPLIT=leave_one_out INPUT=ratings.dat DATASET=ml-1m bash script/process_data.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

INPUT=${INPUT:-}                        # files, or globs in quotes, separated by commas
DATASET=${DATASET:-}                    # the folder's name
FORMAT=${FORMAT:-}                      # json, csv, parquet, or a known data set (ml-1m, gowalla, …); empty: what it is
SPLIT=${SPLIT:-}                        # time (8:1:1), leave_one_out, or given by the files' names; empty: what the files say
INDEX=${INDEX:-}                        # identifier index whose numbers the items are: it is taken along
ITEMS=${ITEMS:-}                        # metadata of the items, for their titles
TIME_FORMAT=${TIME_FORMAT:-}            # of dates, such as '%d/%m/%Y %H:%M'; order: numbers that only order
MIN_RATING=${MIN_RATING-split}          # split: 4 with SPLIT=time, any otherwise; empty: any
USER_CORE=${USER_CORE:-0}               # interactions that a user, or an item, must have; 0: any number
ITEM_CORE=${ITEM_CORE:-0}
RATIOS=${RATIOS:-8,1,1}                 # training, validation, test; by global time
MIN_TRAIN_ITEMS=${MIN_TRAIN_ITEMS:-}    # users with fewer training items are dropped; empty: 2 with SPLIT=time, else 1

[ -n "$INPUT" ] && [ -n "$DATASET" ] || { echo "error: set INPUT to raw files and DATASET to a new name" >&2; exit 2; }
NUM_PROCESSES=1 NUM_MACHINES=1 launch process-data \
    --input "$INPUT" --output "$DATA_PATH/$DATASET" --format "$FORMAT" --split "$SPLIT" --index "$INDEX" --items "$ITEMS" \
    --time_format "$TIME_FORMAT" --min_rating "$MIN_RATING" --user_core "$USER_CORE" \
    --item_core "$ITEM_CORE" --ratios "$RATIOS" --min_train_items "$MIN_TRAIN_ITEMS" "$@"
