#!/usr/bin/env bash
# From a fresh clone to the table: set-up, then all four stages on the toy data with tiny models, on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
bash script/setup.sh
export PYTHON=$PWD/.venv/bin/python   # before, PYTHON said what .venv is made with
export DATASET=toy DATA_PATH=data OUTPUT_DIR=${OUTPUT_DIR:-output/quickstart} NUM_PROCESSES=${NUM_PROCESSES:-1}
source script/common.sh

TARGET=$OUTPUT_DIR/base/target DRAFT=$OUTPUT_DIR/base/draft
[ -d "$TARGET" ] || "$PYTHON" code/init_model.py --output "$TARGET" --shape tiny
[ -d "$DRAFT" ] || "$PYTHON" code/init_model.py --output "$DRAFT" --shape tiny --layers 1

echo "== 1/4 fine-tune the target"
BASE_MODEL=$TARGET FULL=true EPOCHS=5 BATCH_SIZE=32 MICRO_BATCH_SIZE=32 LEARNING_RATE=2e-3 WARMUP_STEPS=30 \
    bash script/finetune_llama.sh
echo "== 2/4 generate the teacher data"
BATCH_SIZE=64 bash script/generate_teacher_data.sh
echo "== 3/4 train the draft"
BASE_MODEL=$DRAFT EPOCHS=3 BATCH_SIZE=32 MICRO_BATCH_SIZE=32 LEARNING_RATE=2e-3 WARMUP_STEPS=30 \
    bash script/train.sh
echo "== 4/4 speculative decoding, checked against generate"
run_beam_sizes=1,5,10,20 bash script/inference.sh
