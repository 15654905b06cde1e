#!/usr/bin/env bash
# Make .venv with the exact versions of constraints.txt. Does nothing where that is done; goes on where it was cut off.
#   PYTHON=/path/to/python3.12 bash script/setup.sh
# A torch that is there already, in .venv or with PYTHON, is kept where pyproject.toml allows its version.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
LOG=$VENV/setup.log   # what pip said
fail() { echo "error: $1" >&2; exit 2; }

wanted=$(cat "$ROOT/requirements.txt" "$ROOT/constraints.txt")
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
own=$(version "$VENV/bin/python")
base=${PYTHON:-python3}
[ -n "$own" ] && [ -z "${PYTHON:-}" ] && base=$VENV/bin/python
found=$(version "$base")
[ -n "$found" ] || fail "PYTHON=$base: does not run; set PYTHON=/path/to/python3, of version 3.10 or newer"
[ "${found%%.*}" -eq 3 ] && [ "${found#*.}" -ge 10 ] ||
    fail "PYTHON=$base: is Python $found, and 3.10 or newer is needed; set PYTHON=/path/to/python3"
[ -z "$own" ] || [ "$own" = "$found" ] ||
    fail "$VENV: has Python $own, and PYTHON=$base is $found; unset PYTHON, or remove .venv to have it made anew"
[ -n "$own" ] && [ "$(cat "$VENV/installed" 2>/dev/null)" = "$wanted" ] && exit 0

mkdir -p "$VENV" || fail "$VENV: cannot be written; see to its permissions, or to the space on the disk"
if command -v flock >/dev/null; then
    exec 9>"$VENV/lock"
    flock 9   # another setup at work: wait for it, and find its work done
    [ "$(cat "$VENV/installed" 2>/dev/null)" = "$wanted" ] && exit 0
fi
trap 'echo "error: the installation was interrupted; run it again to go on" >&2; exit 130' INT TERM

# Say in one line why a step failed, from what pip said and the space that is left.
explain() {
    local why network='NameResolution|name resolution|NewConnectionError|Timeout|Max retries|unreachable|ProxyError'
    if grep -qE 'No space left|quota exceeded' "$LOG" || [ "$(df -kP "$VENV" | awk 'NR == 2 { print $4 }')" -lt 20000 ]; then
        why="the disk is full ($(df -hP "$VENV" | awk 'NR == 2 { print $4 " left on " $6 }')); make room, 3 GB"
    elif grep -qE "$network" "$LOG"; then
        why="the package index cannot be reached; see to the network (or PIP_INDEX_URL, HTTPS_PROXY)"
    elif grep -q 'ensurepip is not' "$LOG"; then
        why="$base cannot make environments; install its venv (Debian and Ubuntu: apt install python$found-venv)"
    else
        why="the installation failed ($(grep -iE -m 1 'error' "$LOG" | cut -c1-300)); see $LOG"
    fi
    fail "$why; then run this again, and it goes on"
}

: > "$LOG" || fail "$LOG: cannot be written; see to its permissions, or to the space on the disk"
# The last that pip writes of a package is a RECORD that names INSTALLER; one that was cut off before, it takes for whole.
for info in "$VENV"/lib/python*/site-packages/*.dist-info; do
    [ ! -d "$info" ] || grep -qs 'INSTALLER' "$info/RECORD" || rm -r "$info"
done
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "setup: making .venv with Python $found"
    "$base" -m venv "$VENV" >> "$LOG" 2>&1 || explain
fi

# Version and folder of the torch of a Python, by its metadata: importing it takes seconds.
torch_of() {
    "$1" -c 'from importlib.metadata import distribution as d; print(d("torch").version, d("torch").locate_file(""))' \
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
torch=$(torch_of "$VENV/bin/python")
if ! will_do "$torch"; then
    torch=$(torch_of "$base")
    if will_do "$torch"; then   # what stands behind a .pth comes after what .venv has itself
        echo "${torch#* }" > "$(echo "$VENV"/lib/python*/site-packages)/torch_of_python.pth"
    else
        torch=
    fi
fi
cp "$ROOT/constraints.txt" "$VENV/constraints.txt"
if [ -n "$torch" ]; then
    echo "setup: keeps torch ${torch%% *} of ${torch#* }"
    { grep -vE '^(torch|triton|nvidia-.*|cuda-.*)==' "$ROOT/constraints.txt"; echo "torch==${torch%% *}"; } \
        > "$VENV/constraints.txt"
fi
echo "setup: installing constraints.txt into .venv (some minutes; what pip says is in $LOG)"
grep -v '^-c' "$ROOT/requirements.txt" > "$VENV/requirements.txt"
"$VENV/bin/python" -m pip install --disable-pip-version-check --no-color -r "$VENV/requirements.txt" \
    -c "$VENV/constraints.txt" 2>&1 | tee -a "$LOG" 2>/dev/null |
    awk '/Downloading .*(MB|GB)/ && $(NF - 1) !~ /^\(?[0-9](\.|$)/ { print "setup: " $0; fflush() }' || explain
printf '%s\n' "$wanted" > "$VENV/installed"
echo "setup: done"
