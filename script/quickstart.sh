#!/usr/bin/env bash
# From a fresh clone to the table: set-up, then all four stages on the toy data with tiny models, on the CPU.
set -euo pipefail
[[ ${PYTHON:-} == [!/]*/* ]] && export PYTHON=$PWD/$PYTHON
cd "$(dirname "$0")/.."
bash script/setup.sh
export PYTHON=$PWD/.venv/bin/python   # before, PYTHON said what .venv is made with
export DATASET=toy DATA_PATH=data OUTPUT_DIR=${OUTPUT_DIR:-output/quickstart} NUM_PROCESSES=${NUM_PROCESSES:-1}
unset BASE_MODEL   # of stages 1 and 3, which have their models here
source script/common.sh
HERE=$OUTPUT_DIR/toy TARGET=$OUTPUT_DIR/base/target DRAFT=$OUTPUT_DIR/base/draft

cat <<END
Quick start: the four stages on a toy catalogue (996 items, 2,000 users), with models of a million weights. On two cores:
  1/4  fine-tune the target                                                  some 70 seconds
  2/4  let it answer every prompt with its 20 best items: the teacher data        15
  3/4  train the draft on these answers                                           35
  4/4  decode all 289 test users in three ways, and check that the lists are equal 95
About four minutes in all. Interrupted and started again, it goes on where it was. Logs: $LOG_DIR

END
[ -d "$TARGET" ] || "$PYTHON" -m atspeed init-model --output "$TARGET" --shape tiny
[ -d "$DRAFT" ] || "$PYTHON" -m atspeed init-model --output "$DRAFT" --shape tiny --layers 1

echo "== 1/4 fine-tune the target"
TARGET_BASE=$TARGET FULL=true EPOCHS=5 BATCH_SIZE=32 MICRO_BATCH_SIZE=32 LEARNING_RATE=2e-3 WARMUP_STEPS=30 \
    bash script/finetune_llama.sh
echo "== 2/4 generate the teacher data"
BATCH_SIZE=64 bash script/generate_teacher_data.sh
echo "== 3/4 train the draft"
DRAFT_BASE=$DRAFT EPOCHS=3 BATCH_SIZE=32 MICRO_BATCH_SIZE=32 LEARNING_RATE=2e-3 WARMUP_STEPS=30 \
    bash script/train.sh
echo "== 4/4 speculative decoding, checked against generate"
RUN_BEAM_SIZES=1,5,10,20 bash script/inference.sh

cat <<END

What the table says, for K recommended items a user:
  generate         beam search of transformers; the lists of the other two equal its lists, item by item
  gamma 0          the same search here, without a draft: one call of the target an identifier token (a level), for all beams
  speculative      the draft proposes beams for all levels, one call of the target checks them: fewer target calls
  ms, speed-up     median time a user; times faster than generate
  accepted levels  of the drafted levels, how many the target accepts a round
With a target this small a call costs hardly more than a draft's, so gamma 0 is the fastest. A draft pays where target calls
are dear. See it: the same target in the shape of LLaMA-160M, with the same draft, in some 90 seconds:

  .venv/bin/atspeed grow-model --model $HERE/target --output $HERE/target-160m --shape llama-160m
  OUTPUT_DIR=$OUTPUT_DIR TARGET_MODEL=$HERE/target-160m METHODS="generate,gamma 0,speculative,auto" \\
      RUN_BEAM_SIZES=1,5,10 BATCH_SIZES=1 REQUESTS=5 bash script/benchmark.sh

Recommend with what was trained, to a file and over HTTP:

  OUTPUT_DIR=$OUTPUT_DIR bash script/recommend.sh      # Parquet files of every test user's list: $HERE/lists
  OUTPUT_DIR=$OUTPUT_DIR bash script/serve.sh          # a page at http://127.0.0.1:8000; Ctrl-C ends it

The plot: $HERE/results/draft-AtSpeedSModel/*/results.png. Next: your own model and data (README.md, "The four
stages"); all six ways to train a draft, compared (bash script/reproduce.sh); the decoder in your own code ("BeamSD").
END
