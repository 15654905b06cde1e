#!/usr/bin/env bash
# Fetch the released data sets:      bash data/download.sh beauty games
# or take them from a local folder:  bash data/download.sh --from DIR beauty games
#
# Every file is checked against its SHA-256 before it gets its name; files that are there already are only checked; a
# download that was cut off goes on where it stopped. DIR holds a folder for each data set, or is the data set itself.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DATA_PATH=${DATA_PATH:-$HERE}                         # where the data sets go
CHECKSUMS=${CHECKSUMS:-$HERE/checksums.sha256}        # what there is: SHA-256, then <data set>/<file>
COMMIT=93bc8864b55a0318a535a85d710c2b729c11142d       # of github.com/Linxyhaha/AtSpeed
BASE_URL=${BASE_URL:-https://raw.githubusercontent.com/Linxyhaha/AtSpeed/$COMMIT/data}

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

has() { command -v "$1" >/dev/null; }

hash_of() {  # the SHA-256 of file $1
    if has sha256sum; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -d ' ' -f 1
}

get() {  # URL $1 into file $2, from where that ends
    if has curl; then
        curl --fail --location --silent --show-error --retry 3 --continue-at - --output "$2" "$1"
    elif has wget; then
        wget --no-verbose --tries=3 --continue --output-document="$2" "$1"
    else
        fail "neither curl nor wget is installed; install one, or take the files from a folder with --from DIR"
    fi
}

download() {  # URL $1 into file $2, of SHA-256 $3: from where that ends, or anew if that does not give the right file
    local status=0
    if [[ -s $2 ]]; then
        if [[ $(hash_of "$2") == "$3" ]]; then return; fi
        get "$1" "$2" || status=$?
        case $status in
            0 | 8 | 22 | 33)  # done, or the server cannot go on from there: curl's 22 and 33, wget's 8
                if [[ $(hash_of "$2") == "$3" ]]; then return; fi
                rm -f "$2"
                status=0
                ;;
        esac
    fi
    if [[ $status == 0 ]]; then get "$1" "$2" || status=$?; fi
    [[ $status == 0 ]] || fail "$1: download failed (exit code $status); run the same command again to resume"
}

fetch() {  # data set file $2, of SHA-256 $1
    local expected=$1 name=$2 found source target=$DATA_PATH/$2
    local partial=$target.partial
    if [[ -e $target ]]; then
        found=$(hash_of "$target")
        [[ $found == "$expected" ]] ||
            fail "$target: expected SHA-256 $expected, found $found; not overwritten, remove it to fetch it again"
        echo "$name: there already"
        return
    fi
    mkdir -p "$(dirname "$target")"
    if [[ -n $FROM ]]; then
        source=$FROM/$name
        if [[ ! -d $FROM/${name%%/*} ]]; then source=$FROM/${name#*/}; fi
        [[ -f $source ]] || fail "$source: no such file; --from takes a folder of data sets, or a data set itself"
        cat "$source" >"$partial"
    else
        source=$BASE_URL/$name
        download "$source" "$partial" "$expected"
    fi
    found=$(hash_of "$partial")
    if [[ $found != "$expected" ]]; then
        rm -f "$partial"
        fail "$source: expected SHA-256 $expected, found $found; nothing was kept, run the same command again"
    fi
    mv "$partial" "$target"
    echo "$name: fetched"
}

[[ -f $CHECKSUMS ]] || fail "$CHECKSUMS: no such file; set CHECKSUMS to the list of files and their SHA-256" 2
KNOWN=$(sed 's|^[^ ]* [ *]||; s|/.*||' "$CHECKSUMS" | sort -u | tr '\n' ' ')
USAGE="usage: bash data/download.sh [--from DIR] DATASET...   (data sets: ${KNOWN% })"
FROM='' WANTED=''
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help)
            echo "$USAGE"
            exit
            ;;
        --from)
            FROM=${2:-}
            [[ -d $FROM ]] || fail "--from ${FROM:-(nothing)}: no such folder" 2
            shift
            ;;
        -*) fail "unknown option $1; $USAGE" 2 ;;
        *)
            [[ " $KNOWN" == *" $1 "* ]] || fail "unknown data set '$1'; the known ones are ${KNOWN% }" 2
            WANTED="$WANTED $1"
            ;;
    esac
    shift
done
[[ -n $WANTED ]] || fail "no data set named; $USAGE" 2

for dataset in $WANTED; do
    while read -r hash name || [[ -n $name ]]; do
        name=${name#\*}
        if [[ ${name%%/*} == "$dataset" ]]; then fetch "$hash" "$name" </dev/null; fi
    done <"$CHECKSUMS"
done
