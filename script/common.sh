# Sourced by the other scripts: where things are, and how a stage is started.
# A stage runs on all GPUs, or those of CUDA_VISIBLE_DEVICES, through accelerate; where there is none, on the CPU, in
# NUM_PROCESSES processes.
# On several machines: the same command on each, MACHINE_RANK apart, and OUTPUT_DIR, LOG_DIR on a disk that all share.

fail() { echo "error: $1" >&2; exit 2; }
# renamed OLD NEW: a variable's older name is read too.
renamed() {
    [ -n "${!1:-}" ] || return 0
    [ -z "${!2:-}" ] || [ "${!2}" = "${!1}" ] || fail "$1=${!1} and $2=${!2} are one variable; set $2 alone"
    export "$2=${!1}"
    unset "$1"
}
for old in run_beam_sizes r_original r_student constrained_loss constrained_softmax train_data valid_data; do
    renamed "$old" "$(tr a-z A-Z <<< "$old")"   # as the release has them
done
renamed CONSTRAINED_LOSS CONSTRAINED_ALIGNMENT

[ -n "${DATASET-toy}" ] || fail "DATASET= is empty; name a data set, or unset it"
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$ROOT/.venv/bin/python" ] && PYTHON=$ROOT/.venv/bin/python
fi
command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: not there; set PYTHON=/path/to/python3, or run script/setup.sh"
"$PYTHON" -IS "$ROOT/script/variables.py" "$ROOT"/script/*.sh   # ends here, if a name is mistyped
DATA_PATH=${DATA_PATH:-$ROOT/data}       # holds one folder a data set
OUTPUT_DIR=${OUTPUT_DIR:-$ROOT/output}   # models, teacher data and results, one folder a data set
LOG_DIR=${LOG_DIR:-$ROOT/log}            # what the terminal shows, one file a stage, under the date and the command
GPUS=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || GPUS=0
if [ "$GPUS" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then   # of which a stage sees these alone; -1 is none
    GPUS=$(tr ', ' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c '^[^-]') || GPUS=0
fi
NUM_PROCESSES=${NUM_PROCESSES:-$((GPUS > 1 ? GPUS : 1))}   # of this machine
NUM_MACHINES=${NUM_MACHINES:-1}
MACHINE_RANK=${MACHINE_RANK:-0}                    # 0 on the machine of MAIN_PROCESS_IP
MAIN_PROCESS_IP=${MAIN_PROCESS_IP:-127.0.0.1}
MAIN_PROCESS_PORT=${MAIN_PROCESS_PORT:-29500}
for name in NUM_PROCESSES NUM_MACHINES MAIN_PROCESS_PORT; do
    [[ ${!name} =~ ^0*[1-9][0-9]*$ ]] || fail "$name=${!name}: must be a whole number of at least 1"
done
[[ $MACHINE_RANK =~ ^[0-9]+$ ]] && [ "$MACHINE_RANK" -lt "$NUM_MACHINES" ] ||
    fail "MACHINE_RANK=$MACHINE_RANK: must be a whole number below NUM_MACHINES=$NUM_MACHINES"

export PYTHONPATH=$ROOT/code${PYTHONPATH:+:$PYTHONPATH}
# launch COMMAND FLAGS…: run `atspeed COMMAND`, or, where it has a dot, the module of that name; its exit code is kept.
launch() {
    local all=$((NUM_PROCESSES * NUM_MACHINES)) start=("$PYTHON") main=()
    local program=(-m atspeed "$1")
    [[ $1 == *.* ]] && program=(-m "$1")
    shift
    if [ "$all" -gt 1 ] && [ "$GPUS" -gt 0 ]; then
        main=(--main_process_port 0)   # any that is free
        [ "$NUM_MACHINES" -gt 1 ] && main=(--main_process_ip "$MAIN_PROCESS_IP" --main_process_port "$MAIN_PROCESS_PORT")
        start=("$PYTHON" "$ROOT/script/launch.py" accelerate --config_file "${ACCELERATE_CONFIG:-$ROOT/accelerate.yaml}"
            --num_processes "$all" --num_machines "$NUM_MACHINES" --machine_rank "$MACHINE_RANK" "${main[@]}")
    elif [ "$all" -gt 1 ]; then
        export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        main=(--standalone)
        [ "$NUM_MACHINES" -gt 1 ] && main=(--nnodes "$NUM_MACHINES" --node_rank "$MACHINE_RANK"
            --master_addr "$MAIN_PROCESS_IP" --master_port "$MAIN_PROCESS_PORT")
        start=("$PYTHON" "$ROOT/script/launch.py" torchrun "${main[@]}" --nproc_per_node "$NUM_PROCESSES")
    fi
    if [ "$NUM_PROCESSES" -eq 1 ] && [ "$GPUS" -gt 1 ]; then   # a process has one GPU
        [ -n "${CUDA_VISIBLE_DEVICES+set}" ] || CUDA_VISIBLE_DEVICES=0
        export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}   # the first
    fi
    local stage=${0##*/}
    stage=${stage%.sh}
    mkdir -p "$LOG_DIR"
    export LOG_FILE=$LOG_DIR/$stage.log   # where a traceback goes
    export TENSORBOARD_LOGGING_DIR=${TENSORBOARD_LOGGING_DIR:-$LOG_DIR/tensorboard/$stage}
    printf '\n== %s  %s\n' "$(date '+%F %T')" "$(printf '%q ' "${start[@]}" "${program[@]}" "$@")" >> "$LOG_DIR/$stage.log"
    "${start[@]}" "${program[@]}" "$@" 2>&1 | tee -a "$LOG_DIR/$stage.log"
}
