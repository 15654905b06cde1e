#!/usr/bin/env bash
# recommend.sh, with all of its variables, on Ray: on a cluster that is there (ADDRESS=auto, or ray://HOST:10001), or on this
# machine. Same files, and run again, by either, it goes on where it was killed. Needs: pip install -e ".[pipeline,ray]"
#   INPUT=users.parquet OUTPUT=/shared/lists ADDRESS=auto ACTORS=8 GPUS_PER_ACTOR=0.5 bash script/recommend_ray.sh
set -euo pipefail

ADDRESS=${ADDRESS:-}                            # of a cluster; empty: Ray is started on this machine
ACTORS=${ACTORS:-1}                             # processes that decode
GPUS_PER_ACTOR=${GPUS_PER_ACTOR:-0}             # a share of a GPU, such as 0.5; 0: on the CPU
CPUS_PER_ACTOR=${CPUS_PER_ACTOR:-0.5}           # that Ray reserves; it needs some for its own tasks

NUM_PROCESSES=1 NUM_MACHINES=1 exec bash "$(dirname "$0")/recommend.sh" --engine ray --address "$ADDRESS" \
    --actors "$ACTORS" --gpus_per_actor "$GPUS_PER_ACTOR" --cpus_per_actor "$CPUS_PER_ACTOR" "$@"
