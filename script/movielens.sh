#!/usr/bin/env bash
# A real language model, real texts, real people: SmolLM2-135M recommends films to the 943 people of MovieLens-100k. From
# ratings to splits, identifiers of titles and genres, the target, its teacher data, two drafts, lists in words, quality
# beside simple recommenders, and the time that a person waits, with every list checked. Each stage that is done is kept.
#   bash script/movielens.sh        # model and encoder come from the hub, ratings from GroupLens (their terms apply)
#   MODEL=/path/to/SmolLM2-135M ENCODER=/path/to/all-MiniLM-L6-v2 INPUT=/path/to/u.data ITEMS=/path/to/u.item bash script/movielens.sh
#   ABLATIONS=true bash script/movielens.sh                     # also: random weights; identifiers of texts alone, and random
#   PRESET=miniature MODEL=… bash script/movielens.sh           # ten prompts, a step or two a stage: does it run?
set -euo pipefail
source "$(dirname "$0")/common.sh"

PRESET=${PRESET:-home}                       # home: some hours on two cores; miniature: minutes, to see that it runs
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
INPUT=${INPUT:-}                             # u.data of GroupLens, or ml-100k.inter of RecBole; empty: fetched
ITEMS=${ITEMS:-}                             # u.item, or ml-100k.item; empty: fetched
SPLIT=${SPLIT:-leave_one_out}                # or time
ABLATIONS=${ABLATIONS:-false}                # true: what the pretrained weights, who chose what, and the texts bring
DRAFT_LAYERS=${DRAFT_LAYERS:-0,1,29}         # of the target, that one of the drafts begins as
SEED=${SEED:-0}
case $PRESET in
    home) people=() requests=(--requests 16) size=64 epochs=${EPOCHS:-3} drafts=${DRAFT_EPOCHS:-3} widths=${RUN_BEAM_SIZES:-1,5,10,20,50} batches=${BATCH_SIZES:-1,4,16,64} ;;
    miniature) people=(--max_users 10) requests=(--requests 2 --warmup 0) size=16 epochs=1 drafts=1 widths=1,5 batches=1 ;;
    *) fail "PRESET=$PRESET: choose home or miniature" ;;
esac
export DATASET=ml-100k-$SPLIT DATA_PATH OUTPUT_DIR LOG_DIR SEED
[ "$PRESET" = home ] || OUTPUT_DIR=$OUTPUT_DIR/miniature
RAW=$DATA_PATH/raw/ml-100k
cut=$SPLIT
unset BASE_MODEL BATCH_SIZE EPOCHS SPLIT   # which the stages read too

if [ -z "$INPUT" ] && [ ! -d "$DATA_PATH/$DATASET" ]; then
    echo "== fetch the ratings from GroupLens (free for research, not to be passed on: files.grouplens.org/datasets/movielens/ml-100k-README.txt)"
    mkdir -p "$RAW"
    [ -f "$RAW/ml-100k.zip" ] || { curl -fL --retry 3 -o "$RAW/ml-100k.zip.part" https://files.grouplens.org/datasets/movielens/ml-100k.zip &&
        mv "$RAW/ml-100k.zip.part" "$RAW/ml-100k.zip"; } || fail "the ratings cannot be fetched; set INPUT and ITEMS to u.data and u.item"
    "$PYTHON" -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2], ["ml-100k/u.data", "ml-100k/u.item"])' \
        "$RAW/ml-100k.zip" "${RAW%/*}"
fi
INPUT=${INPUT:-$RAW/u.data} ITEMS=${ITEMS:-$RAW/u.item}
[[ $INPUT == *u.data ]] && FORMAT=ml-100k

# What the target reads: as few tokens as can be beside the items. Each film is its four tokens.
mkdir -p "$OUTPUT_DIR"
[ -f "$OUTPUT_DIR/prompt.txt" ] || echo 'Films that someone liked, oldest first: {history}' > "$OUTPUT_DIR/prompt.txt"
export PROMPT_TEMPLATE=$OUTPUT_DIR/prompt.txt ITEM_SEPARATOR=
export LORA_MODULES=q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj LORA_R=16 LORA_ALPHA=32 ITEM_ROWS=level

echo "== 1/7 splits: films that people gave four or five stars ($cut)"
[ -d "$DATA_PATH/$DATASET" ] || FORMAT=${FORMAT:-} INPUT=$INPUT ITEMS=$ITEMS SPLIT=$cut MIN_RATING=4 bash "$ROOT/script/process_data.sh"
echo "== 2/7 identifiers: titles and genres, encoded, who chose what, and an RQ-VAE"
index=$DATA_PATH/$DATASET/$DATASET.texts.json
export CODEBOOKS=32,32,32,32
films() { INPUT='' ITEMS=$ITEMS ENCODER=$ENCODER HIDDEN=512,256,128 EPOCHS=200 bash "$ROOT/script/build_index.sh"; }
INDEX_NAME=texts COLLABORATIVE=$size films
export INDEX=$index

# target: fine-tune a target from TARGET_BASE, and see how good it is.
target() {
    TARGET_BASE=${TARGET_BASE:-$MODEL} SUBSEQ=true HISTORY_LOSS=true EPOCHS=$epochs BATCH_SIZE=4 MICRO_BATCH_SIZE=4 \
        LEARNING_RATE=1e-3 WARMUP_STEPS=15 bash "$ROOT/script/finetune_llama.sh" "${people[@]}"
    EXCLUDE_SEEN=true bash "$ROOT/script/quality.sh" "${people[@]}"
}
echo "== 3/7 fine-tune the target"
target
echo "== 4/7 the target's own lists, which drafts learn from"
BATCH_SIZE=16 bash "$ROOT/script/generate_teacher_data.sh" "${people[@]}"
echo "== 5/7 two drafts: a small LLaMA from scratch, and layers $DRAFT_LAYERS of the target"
made=$OUTPUT_DIR/$DATASET
[ -d "$made/base-layers" ] || launch init-model --output "$made/base-layers" --like "$made/target" --keep_layers "$DRAFT_LAYERS"
[ -d "$made/base-small" ] || launch init-model --output "$made/base-small" --like "$made/target" --shape tiny --layers 2 --seed "$SEED"
for kind in small layers; do
    rate=2e-3
    [ $kind = layers ] && rate=3e-4
    DRAFT_BASE=$made/base-$kind DRAFT_MODEL_NAME=draft-$kind MODEL_CLASS=AtSpeedSModel EPOCHS=$drafts BATCH_SIZE=16 MICRO_BATCH_SIZE=16 \
        LEARNING_RATE=$rate WARMUP_STEPS=20 SELECT_USERS=50 bash "$ROOT/script/train.sh"
done
echo "== 6/7 lists in words"
launch show-lists --dataset "$DATASET" --data_path "$DATA_PATH" --index "$INDEX" --target_model "$made/target" \
    --draft_model "$made/draft-small" --exclude_seen
echo "== 7/7 how long a person waits: every way to decode, lists checked first"
for kind in small layers; do
    DRAFT_MODEL_NAME=draft-$kind RUN_BEAM_SIZES=$widths BATCH_SIZES=$batches \
        METHODS="generate,gamma 0,speculative,trie,hybrid,auto" bash "$ROOT/script/benchmark.sh" "${requests[@]}"
done

if [ "$ABLATIONS" = true ]; then
    echo "== ablation: random weights of the same architecture, all trained"
    [ -d "$made/base-random" ] || launch init-model --output "$made/base-random" --like "$MODEL" --seed "$SEED"
    OUTPUT_DIR=$OUTPUT_DIR/random-weights TARGET_BASE=$made/base-random FULL=true target
    echo "== ablation: identifiers of titles and genres alone"
    INDEX_NAME=words COLLABORATIVE=0 films
    OUTPUT_DIR=$OUTPUT_DIR/texts-alone INDEX=${index%.texts.json}.words.json target
    echo "== ablation: random identifiers, which say nothing of the films"
    noise=$OUTPUT_DIR/noise.npy
    "$PYTHON" -c 'import json, sys, numpy
items = 1 + max(map(int, json.load(open(sys.argv[1]))))
numpy.save(sys.argv[2], numpy.random.default_rng(0).standard_normal((items, 384)).astype("float32"))' "$index" "$noise"
    ENCODER='' ITEMS='' INPUT='' EMBEDDINGS=$noise METHOD=rq-kmeans INDEX_NAME=random COLLABORATIVE=0 bash "$ROOT/script/build_index.sh"
    OUTPUT_DIR=$OUTPUT_DIR/random-identifiers INDEX=${index%.texts.json}.random.json target
fi
