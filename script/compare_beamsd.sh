#!/usr/bin/env bash
# Times the released BeamSD beside ours, on the same checkpoints and requests, in turns: lists, accepted levels, true
# target calls, milliseconds. It clones and installs nothing:
#   git clone https://github.com/transcend-0/BeamSD
#   python3 -m venv beamsd-env && beamsd-env/bin/pip install torch==2.13.0 transformers==4.41.2 'numpy<2'
#   BEAMSD=BeamSD BEAMSD_PYTHON=beamsd-env/bin/python DATASET=beauty bash script/compare_beamsd.sh [--flag value …]
# Everything that script/benchmark.sh reads is read here too; writes to the same place.
set -euo pipefail
source "$(dirname "$0")/common.sh"

BEAMSD=${BEAMSD:-}                              # folder of the released code
BEAMSD_PYTHON=${BEAMSD_PYTHON:-}                # an interpreter with transformers 4.41 to 4.44, numpy below 2
[ -n "$BEAMSD" ] && [ -n "$BEAMSD_PYTHON" ] ||
    fail "BEAMSD=$BEAMSD, BEAMSD_PYTHON=$BEAMSD_PYTHON: set them to a clone of BeamSD and to the interpreter that runs it"
export METHODS=${METHODS:-generate,gamma 0,speculative,auto} DRAFT_BEAM_SIZE=${DRAFT_BEAM_SIZE:-40}
export RUN_BEAM_SIZES=${RUN_BEAM_SIZES:-1,5,10,20} SHARE_PREFIX=${SHARE_PREFIX:-false}

bash "$ROOT/script/benchmark.sh" --beamsd "$BEAMSD" --beamsd_python "$BEAMSD_PYTHON" --draft_beam_size "$DRAFT_BEAM_SIZE" "$@"
