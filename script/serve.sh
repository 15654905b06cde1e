#!/usr/bin/env bash
# Serve recommendations over HTTP, until Ctrl-C or SIGTERM: POST /recommend, GET /health, /metrics, /docs, and / for a person.
#   DATASET=toy DRAFT_MODEL=output/toy/draft-AtSpeedSModel bash script/serve.sh [--flag value …]
#   curl -s localhost:8000/recommend -d '{"history": [12, 7, 99], "k": 5}'
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
TARGET_MODEL=${TARGET_MODEL-$OUTPUT_DIR/$DATASET/target}
DRAFT_MODEL=${DRAFT_MODEL-}                     # empty: none; tree attention and the trie alone
INDEX=${INDEX:-}                                # identifier index to serve in place of the target's own
RAW_IDS=${RAW_IDS:-}                            # Parquet or CSV of raw_id, item: requests and lists hold raw ids
TITLES=${TITLES:-}                              # JSON lines, CSV or Parquet of item (or raw_id) and title
STOP_LIST=${STOP_LIST:-}                        # file of items that stand in no list
LISTEN=${LISTEN:-127.0.0.1}                     # 0.0.0.0: other machines may ask (conda, for one, sets HOST)
PORT=${PORT:-8000}
DECODE_BATCH_SIZE=${DECODE_BATCH_SIZE:-32}      # requests decoded at once, at most
BATCH_WAIT=${BATCH_WAIT:-0.005}                 # seconds that a request waits for others
MAX_K=${MAX_K:-100}
MAX_QUEUE=${MAX_QUEUE:-256}                     # requests that may wait; the next gets 503
PAGE=${PAGE:-true}                              # false: nothing at /
INPUT=${INPUT:-}                                # users for the page to offer; empty: those of DATASET, on this machine alone
SPLIT=${SPLIT:-test}
DTYPE=${DTYPE:-float32}

users=()
if [ -n "$INPUT" ]; then
    users=(--histories "$INPUT")
elif [ "$LISTEN" = 127.0.0.1 ] && [ -d "$DATA_PATH/$DATASET" ] && [ -z "$RAW_IDS" ]; then   # for nobody else to see
    users=(--dataset "$DATASET" --data_path "$DATA_PATH" --split "$SPLIT")
fi
mkdir -p "$LOG_DIR"
export LOG_FILE=$LOG_DIR/serve.log   # where a traceback goes
exec "$PYTHON" -m atspeed serve \
    --target_model "$TARGET_MODEL" --draft_model "$DRAFT_MODEL" --index "$INDEX" --raw_ids "$RAW_IDS" --titles "$TITLES" \
    --stop_list "$STOP_LIST" --host "$LISTEN" --port "$PORT" --batch_size "$DECODE_BATCH_SIZE" --batch_wait "$BATCH_WAIT" \
    --max_k "$MAX_K" --max_queue "$MAX_QUEUE" --page "$PAGE" "${users[@]}" --dtype "$DTYPE" "$@"
