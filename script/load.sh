#!/usr/bin/env bash
# Ask a running service (serve.sh) as its users would: so many clients, and so many requests a second. Needs no GPU.
#   DATASET=toy CLIENTS=1,8,32,64 RATES=10,20 bash script/load.sh [--flag value …]
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
URL=${URL:-http://127.0.0.1:8000}
INPUT=${INPUT:-}                                    # JSON lines, CSV or Parquet of user, history; empty: a split of DATASET
SPLIT=${SPLIT:-test}
K=${K:-20}
CLIENTS=${CLIENTS:-1,8,32,64}                       # closed loop: clients that ask again when they have their answer
RATES=${RATES:-}                                    # open loop: requests a second, such as 10,20; empty: none
DURATION=${DURATION:-30}                            # seconds of each load
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}   # whose lists are compared; empty: none
OUTPUT=${OUTPUT:-$OUTPUT_DIR/$DATASET/load}

of=(--histories "$INPUT")
[ -n "$INPUT" ] || of=(--dataset "$DATASET" --data_path "$DATA_PATH" --split "$SPLIT")
NUM_PROCESSES=1 NUM_MACHINES=1 launch load --url "$URL" "${of[@]}" --k "$K" --clients "$CLIENTS" ${RATES:+--rates "$RATES"} \
    --seconds "$DURATION" --target_model "$TARGET_MODEL" --output_dir "$OUTPUT" "$@"
