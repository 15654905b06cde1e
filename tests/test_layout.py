"""Imports point one way, between packages, between the rooms of a package and between modules; a name is one thing."""

import ast
import sys
from collections import defaultdict
from graphlib import TopologicalSorter

import pytest

from conftest import ROOT

CODE = ROOT / "code"
MAY_IMPORT = {
    "beamsd": {"torch", "transformers", "safetensors"},  # safetensors comes with transformers
    "genrec": {
        "beamsd", "torch", "transformers", "safetensors", "numpy", "pandas", "fire", "tqdm", "duckdb", "pyarrow",
        "matplotlib", "psutil",
    },
    "atspeed": {
        "genrec", "beamsd", "torch", "transformers", "peft", "accelerate", "safetensors", "sentencepiece", "tqdm",
        "numpy", "pandas", "pyarrow", "matplotlib", "duckdb", "litserve",
        "fastapi", "starlette", "pydantic", "prometheus_client", "httpx2", "ray",
        "huggingface_hub",  # which comes with transformers
        "vllm",  # of an environment of its own: vllm_worker.py
    },
    "specgr": {
        "genrec", "beamsd", "torch", "transformers", "accelerate", "safetensors", "datasets", "numpy", "pandas", "yaml",
    },
}  # fmt: skip
# Each room of a package imports from itself and from those before it; docs/architecture.md says what is in them.
ROOMS = {
    "beamsd": ("compat", "trie", "tree", "models", "search", "speed", "generation"),
    "genrec": ("runtime", "data", "evaluation", "reports", "raw", "identifiers"),
    "atspeed": (
        "processes", "template", "prompts", "checkpoints", "tree_logits", "data", "training", "benchmark", "beamsd",
        "beamsd4timing", "beamsd_replace", "recommend", "serve", "hub", "gpu", "commands",
        "__main__",
    ),
    "specgr": (
        "configuration", "data", "networks", "decoding", "training", "evaluation", "process_data", "train", "run",
        "sweep", "speed",
    ),
}  # fmt: skip
FILES = {".".join(file.relative_to(CODE).with_suffix("").parts): file for file in sorted(CODE.rglob("*.py"))}
# The names of BeamSD's release, beside the module that has what they do.
RELEASE = {"atspeed.beamsd", "atspeed.beamsd4timing", "atspeed.beamsd_replace"}


def imports(module):
    """The modules that a module imports, wherever in it, for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            found |= inner or {node.module}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package):
    files = [module for module in FILES if module.startswith(f"{package}.")]
    assert files
    for module in files:
        foreign = {name.split(".")[0] for name in imports(module)} - set(sys.stdlib_module_names) - {package}
        assert foreign <= MAY_IMPORT[package], f"{module} imports {foreign - MAY_IMPORT[package]}"


@pytest.mark.parametrize("package", ROOMS)
def test_inside_a_package_imports_point_one_way(package):
    rooms = ROOMS[package]
    modules = [module for module in FILES if module.startswith(f"{package}.") and module != f"{package}.__init__"]
    assert {module.split(".")[1] for module in modules} == set(rooms)
    for module in modules:
        for name in imports(module):
            if name.startswith(f"{package}."):
                here, there = (rooms.index(each.split(".")[1]) for each in (module, name))
                assert there <= here, f"{module} imports {name}, which is in a later room"


def test_no_modules_import_one_another_in_a_circle():
    lazy = {"beamsd.__init__"}  # gives its names on first use
    graph = {module: imports(module) & set(FILES) for module in FILES if module not in lazy}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_a_name_stands_for_one_thing():
    where = defaultdict(set)
    for module, file in FILES.items():
        text = file.read_text()
        # A program is known by its whole name, and nobody else uses what it defines.
        program = module.startswith("atspeed.commands.") or "__main__" in text or module.endswith("__main__")
        if module in RELEASE or module.endswith("__init__") or program:
            continue
        where[module.split(".")[-1] + " (module)"].add(module)
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                where[node.name].add(module)
    twice = {name: sorted(modules) for name, modules in where.items() if len(modules) > 1}
    assert twice == {}


def test_no_init_hides_the_standard_module_code():
    assert not (CODE / "__init__.py").exists()
