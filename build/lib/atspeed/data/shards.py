"""Shards: safetensors files that record their origin, written by many processes at once.

A shard is whole or not there. Its metadata hold its origin, every fact that its contents follow from, and the SHA-256
of its contents, so that a shard of another model, catalogue or place is refused, and a damaged one too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

Origin = dict[str, str | int | bool | None]


def shard_path(folder: Path, shard: int, n_shards: int) -> Path:
    return folder / f"shard-{shard:05d}-of-{n_shards:05d}.safetensors"


def claim_shard(path: Path) -> bool:
    """Whether this process is the one that writes the shard at `path`: the first of all that ask, on any node."""
    try:
        with path.with_name(f".{path.name}.claim").open("x") as file:
            file.write(f"{platform.node()} {os.getpid()}")
    except FileExistsError:
        return False
    return True


def clear_claims(folder: Path) -> None:
    """Remove claims and what killed processes left half-written. To be called where nobody writes."""
    for leftover in folder.glob(".shard-*"):
        leftover.unlink()


def save_shard(path: Path, tensors: dict[str, Tensor], origin: Origin) -> None:
    """Write the shard: the same bytes for the same tensors and origin."""
    from safetensors.torch import save_file

    about = json.dumps({"origin": origin, "sha256": _digest(tensors)}, sort_keys=True)
    with atomic_path(path) as partial:
        save_file(tensors, partial, {"about": about})  # one entry: safetensors writes several in any order


def check_shard(path: Path, origin: Origin, fix: str, contents: bool = True) -> str:
    """The SHA-256 that the shard at `path` gives of its contents.

    The header tells a shard that is missing, truncated or of another origin; with `contents` all of it is read and
    compared with the hash, about a second a GB. Raises UserError, which ends in `fix`.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such shard; {fix}")
    try:
        with safe_open(path, framework="np") as file:  # only the header, for which torch need not be there
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged, perhaps truncated ({error}); delete it, and {fix}") from error
    made = about.get("origin", {})
    for name in sorted({*made, *origin}):
        if made.get(name) != origin.get(name):
            raise UserError(
                f"{path}: is of another run: {name} {made.get(name)}, not {origin.get(name)}; delete it, and {fix}"
            )
    if contents and _digest(load_shard.__wrapped__(path)) != about["sha256"]:
        raise UserError(f"{path}: damaged, its contents are not those that were written; delete it, and {fix}")
    return about["sha256"]


@lru_cache(maxsize=1024)  # a place in the address space each, and some microseconds to open again
def load_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, memory-mapped: read on access, and shared by processes."""
    from safetensors.torch import load_file

    return load_file(path)


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.numpy().data)
    return state.hexdigest()
