#!/usr/bin/env bash
# The documentation as a site, with every link checked. Needs: pip install mkdocs, of constraints.txt
#   bash script/docs.sh [FOLDER]      # output/site
set -euo pipefail
source "$(dirname "$0")/common.sh"
"$PYTHON" -c 'import mkdocs' 2>/dev/null || fail "mkdocs is not installed: $PYTHON -m pip install -c $ROOT/constraints.txt mkdocs"
"$PYTHON" "$ROOT/docs/make_site.py" "${1:-$OUTPUT_DIR/site}"
