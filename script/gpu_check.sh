#!/usr/bin/env bash
# Check this project on a GPU, ten minutes at most, and write a report to send. Needs torch and transformers alone.
#   bash script/gpu_check.sh
#   bash script/gpu_check.sh --device cpu --small true    # all of its code on a CPU, in the smallest sizes
set -euo pipefail
source "$(dirname "$0")/common.sh"

REPORT=${REPORT:-$OUTPUT_DIR/gpu_check.md}
MINUTES=${MINUTES:-10}

NUM_PROCESSES=1 launch gpu-check --output "$REPORT" --minutes "$MINUTES" "$@"
