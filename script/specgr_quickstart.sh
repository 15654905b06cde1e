#!/usr/bin/env bash
# SpecGR from a fresh clone: set-up, a toy whose items come out over time, all four trainings, and the table.
set -euo pipefail
cd "$(dirname "$0")/.."
bash script/setup.sh
source script/common.sh

FOLDER=${FOLDER:-output/specgr-quickstart}
export CONFIG=code/specgr/configs/toy.yaml NUM_PROCESSES=1
HERE=(--data_path "$FOLDER/data" --output_dir "$FOLDER" --embeddings "$FOLDER/data/toy/embeddings.npy")

echo "== 1/3 make the toy"
[ -d "$FOLDER/data/toy" ] || "$PYTHON" code/make_toy.py --output "$FOLDER/data/toy" --n_items 1000 --n_users 4000 \
    --mean_length 14 --new_items 0.6
echo "== 2/3 train TIGER, UniSRec and SpecGR++"
bash script/specgr_train.sh "${HERE[@]}"
echo "== 3/3 recommend new items"
bash script/specgr_inference.sh "${HERE[@]}" --overwrite
