"""Imports point one way, and the decoder stands on torch and transformers alone."""

import ast
import sys

import pytest

from conftest import ROOT

MAY_IMPORT = {
    "beamsd": {"torch", "transformers", "safetensors"},  # safetensors comes with transformers
    "genrec": {
        "beamsd", "torch", "transformers", "safetensors", "numpy", "pandas", "fire", "tqdm", "duckdb", "pyarrow",
        "matplotlib",
    },
    "atspeed": {
        "genrec", "beamsd", "torch", "transformers", "peft", "accelerate", "safetensors", "sentencepiece", "tqdm",
        "pandas", "matplotlib", "huggingface_hub",  # which comes with transformers
    },
    "specgr": {
        "genrec", "beamsd", "torch", "transformers", "accelerate", "safetensors", "datasets", "numpy", "pandas", "yaml",
    },
}  # fmt: skip


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package):
    files = sorted((ROOT / "code" / package).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {package}
            assert foreign <= MAY_IMPORT[package], f"{file.name} imports {foreign - MAY_IMPORT[package]}"


def test_no_init_hides_the_standard_module_code():
    assert not (ROOT / "code" / "__init__.py").exists()
