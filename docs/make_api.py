"""Write docs/api.md from the docstrings of beamsd, and of BeamSD's names in atspeed: python docs/make_api.py"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "code"))

import beamsd  # noqa: E402, found by the line above
from atspeed import beamsd as as_released  # noqa: E402
from atspeed import beamsd4timing, beamsd_replace  # noqa: E402

HEAD = "# API of beamsd\n\nWritten by `docs/make_api.py` from the docstrings; edit those.\n"
# What BeamSD's users import: its notebook and README run as they stand.
RELEASED = {
    as_released: ("beam_search_by_SD", "beam_search_by_TreeAttn", "BeamSDOutput"),
    beamsd4timing: ("beam_search_by_SD_4timing", "Timer"),
    beamsd_replace: ("replace_beam_search_with_TreeAttn",),
}


def signature(thing: object) -> str:
    """As it is written: annotations are text, and without the quotes they read as in the source."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))


def fields(cls: type) -> list[str]:
    """A line for each annotated attribute, with the comment behind it, which holds its shape."""
    source = textwrap.dedent(inspect.getsource(cls)).splitlines()
    lines = []
    for node in ast.parse("\n".join(source)).body[0].body:
        if isinstance(node, ast.AnnAssign):
            comment = source[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
            lines.append(f"- `{ast.unparse(node)}`" + (f": {comment}" if comment else ""))
    return lines


def methods(cls: type) -> list[str]:
    lines = []
    for name, member in vars(cls).items():
        method = getattr(member, "__func__", member)
        if name.startswith("_") and name != "__call__" and not (name == "__init__" and method.__doc__):
            continue
        if isinstance(member, property):
            lines.append(f"- **`.{name}`**: {inspect.getdoc(member) or ''}")
        elif inspect.isfunction(method) and method.__doc__ and not method.__doc__.startswith(f"{cls.__name__}("):
            lines.append(f"- **`{name}{signature(method)}`**: {indented(inspect.getdoc(method))}")
    return lines


def indented(text: str) -> str:
    return text.replace("\n", "\n  ").replace("  \n", "\n")


def section(name: str, module: ModuleType = beamsd) -> str:
    thing = getattr(module, name)
    title = f"## {name}\n" if module is beamsd else f"### {name}\n"
    if inspect.isclass(thing):
        made = f"```python\n{name}{signature(thing)}\n```\n" if not dataclasses.is_dataclass(thing) else ""
        parts = [title, made, inspect.getdoc(thing), "\n".join(fields(thing)), "\n".join(methods(thing))]
    else:
        parts = [title, f"```python\n{name}{signature(thing)}\n```\n", inspect.getdoc(thing)]
    return "\n".join(part if part.endswith("\n") else f"{part}\n" for part in parts if part)


def api() -> str:
    parts = [HEAD, *map(section, beamsd.__all__)]
    for module, names in RELEASED.items():
        parts += [f"## from {module.__name__} import …\n\n{inspect.getdoc(module)}\n"]
        parts += [section(name, module) for name in names]
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(api())
