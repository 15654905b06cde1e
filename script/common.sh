# Sourced by the other scripts: where things are, and how a stage is started.
# A stage runs on all GPUs through accelerate; where there is no GPU, on the CPU, in NUM_PROCESSES processes.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$ROOT/.venv/bin/python" ] && PYTHON=$ROOT/.venv/bin/python
fi
DATA_PATH=${DATA_PATH:-$ROOT/data}       # holds one folder a data set
OUTPUT_DIR=${OUTPUT_DIR:-$ROOT/output}   # models, teacher data and results, one folder a data set
LOG_DIR=${LOG_DIR:-$ROOT/log}            # what the terminal shows, one file a stage
GPUS=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || GPUS=0
NUM_PROCESSES=${NUM_PROCESSES:-$((GPUS > 1 ? GPUS : 1))}

# launch STAGE FLAGS…: run code/STAGE.py; its exit code is kept.
launch() {
    local stage=$1 start=("$PYTHON")
    shift
    if [ "$NUM_PROCESSES" -gt 1 ] && [ "$GPUS" -gt 0 ]; then
        start=("$PYTHON" -m accelerate.commands.launch --config_file "${ACCELERATE_CONFIG:-$ROOT/accelerate.yaml}"
            --num_processes "$NUM_PROCESSES")
    elif [ "$NUM_PROCESSES" -gt 1 ]; then
        export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        start=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$NUM_PROCESSES")
    fi
    mkdir -p "$LOG_DIR"
    export TENSORBOARD_LOGGING_DIR=${TENSORBOARD_LOGGING_DIR:-$LOG_DIR/tensorboard/$stage}
    "${start[@]}" "$ROOT/code/$stage.py" "$@" 2>&1 | tee -a "$LOG_DIR/$stage.log"
}
