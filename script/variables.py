"""Refuse a variable of the environment that is nearly one of the scripts', such as DATSET: it would be ignored.

    python script/variables.py script/*.sh

common.sh calls it before any work. What the scripts read is what they give a default: ${NAME:-…}, or default NAME ….
"""

import difflib
import os
import re
import sys
from pathlib import Path

# Of other programs, and near to ours or the same.
OTHERS = {"LOGDIR", "OMP_NUM_THREADS", "PAGER", "PYTHON2", "PYTHON3", "STAGE"}
NEAR = 0.8  # of difflib's ratio


def main(scripts: list[str]) -> int:
    given = r"(?:\$\{|^default )([A-Z][A-Z0-9_]*)(?::?-| )"
    ours = {name for path in scripts for name in re.findall(given, Path(path).read_text("utf-8"), re.MULTILINE)}
    for name, value in os.environ.items():
        # Of two or three letters (WD) every other name is near.
        near = difflib.get_close_matches(name.upper(), ours - OTHERS, 1, NEAR if len(name) > 3 else 1)
        if name not in ours | OTHERS and near:
            print(
                f"error: {name}={value}: the scripts have no such variable; did you mean {near[0]}? "
                f"(unset {name}, if it is another program's)",
                file=sys.stderr,
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
