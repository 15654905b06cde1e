#!/usr/bin/env bash
# SpecGR from a fresh clone: set-up, a toy whose items come out over time, identifiers, all five trainings, and the table.
set -euo pipefail
[[ ${PYTHON:-} == [!/]*/* ]] && export PYTHON=$PWD/$PYTHON
cd "$(dirname "$0")/.."
bash script/setup.sh
export PYTHON=$PWD/.venv/bin/python   # before, PYTHON said what .venv is made with
source script/common.sh

FOLDER=${FOLDER:-output/specgr-quickstart}
export SEED=${SEED:-0}                # of the toy and of all that is trained
export CONFIG=code/specgr/configs/toy.yaml NUM_PROCESSES=1
TOY=$FOLDER/data/toy
HERE=(--data_path "$FOLDER/data" --output_dir "$FOLDER" --seed "$SEED")

echo "== 1/4 make the toy"
[ -d "$TOY" ] || "$PYTHON" -m atspeed make-toy --output "$TOY" --seed "$SEED" --n_items 1500 --n_users 4000 \
    --mean_length 14 --new_items 0.35
echo "== 2/4 identifiers: an RQ-VAE fitted to the items of training"
DATA_PATH=$FOLDER/data DATASET=toy EMBEDDINGS=$TOY/embeddings.npy CODEBOOKS=32,32,64 FIT_ON=train DISTINCT=digit \
    HIDDEN=128 LATENT=64 EPOCHS=200 BATCH_SIZE=512 bash script/build_index.sh --eval_epochs 50
echo "== 3/4 train TIGER, UniSRec, SASRec_T and SpecGR++"
bash script/specgr_train.sh "${HERE[@]}"
echo "== 4/4 recommend new items"
bash script/specgr_inference.sh "${HERE[@]}" --overwrite
