#!/usr/bin/env bash
# Semantic identifiers of a data set's items. Writes $DATA_PATH/$DATASET/$DATASET.$INDEX_NAME.json and a folder beside it.
#   DATASET=beauty ITEMS=meta_Beauty.json.gz ENCODER=/path/to/encoder bash script/build_index.sh [--flag value …]
#   DATASET=beauty EMBEDDINGS=vectors.npy METHOD=rq-kmeans bash script/build_index.sh       # one's own vectors, quickly
#   DATASET=beauty EMBEDDINGS=more.npy bash script/build_index.sh --extend                  # new items; the old ones stay
set -euo pipefail
source "$(dirname "$0")/common.sh"

DATASET=${DATASET:-toy}
COLLABORATIVE=${COLLABORATIVE:-0}               # numbers of a vector of who chose what, beside the text's; 0: none
FIT_ON=${FIT_ON:-all}                           # or train: codebooks of the items of training interactions alone
METHOD=${METHOD:-rq-vae}                        # or rq-kmeans: no network, seconds
INDEX_NAME=${INDEX_NAME:-$METHOD}
ITEMS=${ITEMS:-}                                # metadata: NAME.item.json, JSON or Python lines, CSV (plain or .gz), Parquet
N_ITEMS=${N_ITEMS:-}                            # items of the catalogue, if some never occur; empty: what the data say
ENCODER=${ENCODER:-}                            # folder of any Hugging Face encoder
EMBEDDINGS=${EMBEDDINGS:-}                      # in place of the two: .npy, (items, numbers), row = item number
CODEBOOKS=${CODEBOOKS:-256,256,256,256}         # codes, by level
HIDDEN=${HIDDEN:-2048,1024,512,256,128,64}      # of the encoder of the RQ-VAE; its decoder mirrors it
LATENT=${LATENT:-32}
BETA=${BETA:-0.25}                              # weight of the commitment loss
DISTINCT=${DISTINCT:-sinkhorn}                  # or digit: one level more tells apart the items of the same codes
EPSILON=${EPSILON:-}                            # of Sinkhorn on the last level; 0: nearest; empty: 0.003, for rq-kmeans 0
WARMUP_EPOCHS=${WARMUP_EPOCHS:-2}               # of the autoencoder alone, before k-means; LC-Rec: 0
EPOCHS=${EPOCHS:-30}
BATCH_SIZE=${BATCH_SIZE:-256}
OPTIMIZER=${OPTIMIZER:-adamw}                   # or adagrad
LEARNING_RATE=${LEARNING_RATE:-1e-3}
DTYPE=${DTYPE:-float32}                         # of the encoder's weights
SEED=${SEED:-0}

NUM_PROCESSES=1 NUM_MACHINES=1 launch build-index \
    --dataset "$DATASET" --data_path "$DATA_PATH" --index_name "$INDEX_NAME" --items "$ITEMS" \
    --item_count "$N_ITEMS" --encoder "$ENCODER" \
    --embeddings "$EMBEDDINGS" --collaborative "$COLLABORATIVE" --fit_on "$FIT_ON" --method "$METHOD" --codebooks "$CODEBOOKS" --hidden "$HIDDEN" \
    --latent "$LATENT" --beta "$BETA" --distinct "$DISTINCT" --epsilon "$EPSILON" --warmup_epochs "$WARMUP_EPOCHS" --epochs "$EPOCHS" \
    --batch_size "$BATCH_SIZE" --optimizer "$OPTIMIZER" --learning_rate "$LEARNING_RATE" --dtype "$DTYPE" --seed "$SEED" "$@"
