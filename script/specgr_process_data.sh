#!/usr/bin/env bash
# SpecGR's data: Amazon Reviews 2023 of a category, cut at absolute timestamps. Writes $DATA_PATH/$CATEGORY.
#   CATEGORY=Office_Products bash script/specgr_process_data.sh [--flag value …]
# A folder of the AtSpeed layout, such as Beauty, needs none of this.
set -euo pipefail
source "$(dirname "$0")/common.sh"

CATEGORY=${CATEGORY:-Video_Games}                              # or Office_Products, Cell_Phones_and_Accessories, …
SOURCE=${SOURCE:-hf://datasets/McAuley-Lab/Amazon-Reviews-2023}   # or a folder with its files

NUM_PROCESSES=1 NUM_MACHINES=1 launch specgr.process_data \
    --category "$CATEGORY" --source "$SOURCE" --output "$DATA_PATH/$CATEGORY" "$@"
