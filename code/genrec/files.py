"""Files that are whole or not there, and errors that name them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or folder to; it becomes `path` if the block ends well, else it is removed.

    The temporary name holds the process id, so two processes never write into one another; what a killed process left
    behind under another id is not touched, and never read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        assert partial.exists(), f"nothing was written to {partial}"
        _let_read(partial)
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def _let_read(path: Path) -> None:
    """Give files the mode that the umask says; safetensors leaves its own readable by their owner alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.chmod(file.stat().st_mode | (0o666 & ~umask))


def check_new(path: Path, overwrite: bool, flag: str = "--output") -> None:
    """Raises UserError if `path`, which `flag` chooses, is there, unless it may be overwritten."""
    if path.exists() and not overwrite:
        raise UserError(f"{path}: is there already; choose another {flag}, or pass --overwrite")


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> object:
    """Raises UserError if the file is missing, not JSON, or names a key twice."""
    try:
        return json.loads(read_bytes(path), object_pairs_hook=lambda pairs: _without_duplicates(path, pairs))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON, perhaps truncated ({error}); fetch or write it again") from error


def _without_duplicates(path: Path, pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path}: key {twice!r} stands twice; keep one")
    return result


def read_bytes(path: Path, hint: str = "check the path") -> bytes:
    """Raises UserError, which ends in `hint`, if the file is missing."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; {hint}") from error


def file_sha256(path: Path) -> str:
    """Of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
