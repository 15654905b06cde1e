#!/usr/bin/env bash
# Make .venv with the exact versions of constraints.txt. Does nothing where that is done; goes on where it was cut off.
#   PYTHON=/path/to/python3.12 bash script/setup.sh
# A torch that is there already, in .venv or with PYTHON, is kept where pyproject.toml allows its version.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
LOG=$VENV/setup.log   # what pip said
unset PIP_CONSTRAINT PIP_TARGET PIP_PREFIX PIP_USER PYTHONHOME   # would install something else, or elsewhere
fail() { echo "error: $1" >&2; exit 2; }

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
# Whether .venv is whole, with a Python that runs, and holds what is wanted.
done_already() {
    own=$(version "$VENV/bin/python")
    wanted="Python $own, atspeed of $ROOT/code
$(cat "$ROOT/requirements.txt" "$ROOT/constraints.txt")"
    [ -n "$own" ] && [ "$(cat "$VENV/installed" 2>/dev/null)" = "$wanted" ]
}
done_already && [ -z "${PYTHON:-}" ] && exit 0
base=${PYTHON:-python3}
[ -n "$own" ] && [ -z "${PYTHON:-}" ] && base=$VENV/bin/python
found=$(version "$base")
[ -n "$found" ] || fail "PYTHON=$base: does not run; set PYTHON=/path/to/python3, of version 3.10 or newer"
[ "${found%%.*}" -eq 3 ] && [ "${found#*.}" -ge 10 ] ||
    fail "PYTHON=$base: is Python $found, and 3.10 or newer is needed; set PYTHON=/path/to/python3"
[ -z "$own" ] || [ "$own" = "$found" ] ||
    fail "$VENV: has Python $own, and PYTHON=$base is $found; unset PYTHON, or remove .venv to have it made anew"

trap 'echo "error: the installation was interrupted; run it again to go on" >&2; exit 130' INT TERM
{ mkdir -p "$VENV" && : >> "$LOG"; } 2>/dev/null || fail "$VENV: cannot be written; see to its permissions and the disk's space"
if command -v flock >/dev/null; then
    exec 9>> "$LOG"
    flock -n 9 || { echo "setup: waits for another one that is at work"; flock 9; }
fi
done_already && exit 0

# Say in one line why a step failed, from what pip said and the space that is left.
explain() {
    local why network='NameResolution|name resolution|NewConnection|Timeout|Max retries|unreachable|ProxyError|IncompleteRead|ConnectionReset'
    if grep -qE 'No space left|quota exceeded' "$LOG" || [ "$(df -kP "$VENV" | awk 'NR == 2 { print $4 }')" -lt 20000 ]; then
        why="the disk is full ($(df -hP "$VENV" | awk 'NR == 2 { print $4 " left on " $6 }')); make room (2 GB, with a CUDA build"
        fail "$why of torch 6), then run this again, and it goes on"
    elif tail -n 40 "$LOG" | grep -qE "$network"; then
        why="the package index cannot be reached; see to the network (or PIP_INDEX_URL, HTTPS_PROXY)"
        fail "$why, then run this again, and it goes on"
    elif grep -q 'ensurepip is not' "$LOG"; then
        fail "$base cannot make environments; install its venv (Debian and Ubuntu: apt install python$found-venv)"
    fi
    why=$({ grep -iE -m 1 'error' "$LOG" || tail -n 1 "$LOG"; } | cut -c1-300)
    fail "the installation failed ($why); see $LOG"
}

# The last that pip writes of a package is a RECORD that names INSTALLER; one that was cut off before, it takes for whole.
# Only where an earlier run has been at work: what else is in a .venv is not ours.
if [ -s "$LOG" ]; then
    for info in "$VENV"/lib/python*/site-packages/*.dist-info; do
        [ ! -d "$info" ] || grep -qs 'INSTALLER' "$info/RECORD" || rm -r "$info"
    done
fi
echo "setup, $(date '+%F %T')" > "$LOG"
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "setup: making .venv with Python $found"
    "$base" -m venv "$VENV" >> "$LOG" 2>&1 || explain
fi

# Version and folder of the torch of a Python, by its metadata: importing it takes seconds.
torch_of() {
    "$@" -c 'from importlib.metadata import distribution as d; print(d("torch").version, d("torch").locate_file(""))' \
        2>/dev/null || true
}
# Whether pyproject.toml allows that version.
will_do() {
    [ -n "$1" ] && "$VENV/bin/python" -c 'if True:
        import re, sys
        from pip._vendor.packaging.specifiers import SpecifierSet
        allowed = re.search(r"\"torch([<>=][^\"]*)\"", open(sys.argv[1]).read())[1]
        sys.exit(not SpecifierSet(allowed).contains(sys.argv[2], prereleases=True))' "$ROOT/pyproject.toml" "${1%% *}"
}
packages=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$ROOT/code" > "$packages/programs.pth"   # so that `import atspeed` and `python -m specgr.train` find it
printf '#!%s/bin/python\nfrom atspeed.__main__ import main\n\nmain()\n' "$VENV" > "$VENV/bin/atspeed"
chmod +x "$VENV/bin/atspeed"
torch=$(torch_of env -u PYTHONPATH "$VENV/bin/python")
if ! will_do "$torch"; then
    torch=
    outside=${PYTHON:-python3}
    if [ "$(version "$outside")" = "$found" ] && will_do "$(torch_of "$outside")"; then
        torch=$(torch_of "$outside")
        # What stands behind a .pth comes after what .venv has itself.
        echo "${torch#* }" > "$packages/torch_of_python.pth"
    fi
fi
cp "$ROOT/constraints.txt" "$VENV/constraints.txt"
if [ -n "$torch" ]; then
    echo "setup: keeps torch ${torch%% *} of ${torch#* }"
    # Without what a torch asks of others in a version of its own.
    { grep -vE '^(torch|triton|setuptools|nvidia-.*|cuda-.*)==' "$ROOT/constraints.txt"; echo "torch==${torch%% *}"; } \
        > "$VENV/constraints.txt"
fi
echo "setup: installing constraints.txt into .venv (some minutes; what pip says is in $LOG)"
grep -v '^-c' "$ROOT/requirements.txt" > "$VENV/requirements.txt"
env -u PYTHONPATH "$VENV/bin/python" -m pip install --disable-pip-version-check --no-color -r "$VENV/requirements.txt" \
    -c "$VENV/constraints.txt" 2>&1 | tee -a "$LOG" 2>/dev/null |
    awk '/Downloading .*(MB|GB)/ && $(NF - 1) !~ /^\(?[0-9](\.|$)/ { print "setup: " $0; fflush() }' || explain
done_already || printf '%s\n' "$wanted" > "$VENV/installed"
echo "setup: done"
