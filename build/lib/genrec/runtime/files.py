"""Atomic writing of files and folders, and checks of output paths."""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from genrec.runtime.errors import UserError
from genrec.runtime.text import read_json

FACTS = "facts.json"  # in a finished folder: what made it, and which files it holds
LOCK = ".lock"  # in a folder where a run is in progress
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, exceeded quota, file too large
_HOST = platform.node().replace("-", "_")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which is renamed to `path` on success and removed on failure.

    A folder replaces only one that this project wrote, see `check_ours`. The temporary name contains host and process
    id, so that processes never share one. Leftovers of killed processes on this machine are removed and never read.

    Raises UserError if the disk is full, or if other files have appeared in the folder `path` meanwhile; the message
    then says where the finished folder is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_partials(path)
    partial = path.with_name(f".{path.name}.partial-{_HOST}-{os.getpid()}")  # see `final_paths`
    try:
        yield partial
        assert partial.exists(), f"nothing was written to {partial}"
        _apply_umask(partial)
        if partial.is_dir():
            _replace_folder(partial, path)
        else:
            partial.replace(path)
    except Exception as error:
        if said := disk_refusal(error):
            raise UserError(f"{path}: cannot be written ({said}); make room, or choose another output") from error
        raise
    finally:
        _remove(partial)


def final_paths(text: str) -> str:
    """Replaces the temporary paths in a message by the final ones."""
    return re.sub(rf"\.([^/]+)\.partial-{re.escape(_HOST)}-\d+", r"\1", text)


def disk_refusal(error: BaseException | None) -> str | None:
    """Returns the system's message if an exception was caused by a full disk or another of `FULL`, else None.

    safetensors, tokenizers, Arrow and duckdb raise exceptions of their own, which quote the system's message.
    """
    if error is None or isinstance(error, UserError):
        return None
    said = next((os.strerror(number) for number in FULL if os.strerror(number) in str(error)), None)
    if "PytorchStreamWriter failed writing" in str(error):  # gives no reason; a full disk is the usual one
        said = os.strerror(errno.ENOSPC)
    return said or disk_refusal(error.__cause__ or error.__context__)


def _replace_folder(partial: Path, path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            check_ours(path)
            shutil.rmtree(path)
        partial.rename(path)
    except (OSError, UserError) as error:
        kept = partial.with_name(f"{path.name}.new-{os.getpid()}")
        partial.rename(kept)
        raise UserError(f"{error}; what was made is kept in {kept}") from error


def _clear_partials(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-{glob.escape(_HOST)}-*"):
        process = left.name.rpartition("-")[2]
        # This process's own id is that of an earlier process with the same id, as in a restarted container.
        if process.isdecimal() and (int(process) == os.getpid() or not _is_running(int(process))):
            _remove(left)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # the process of another user, or not a process id
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def contents(folder: Path) -> list[str]:
    """Returns the sorted relative paths of all files in and below a folder, except the lock of a run."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for name in (path.relative_to(folder).as_posix() for path in files) if name != LOCK)


def written(folder: Path, unfinished: tuple[str, ...] = ()) -> set[str]:
    """Returns the `contents` that this project wrote: listed in the facts, or matching a pattern of `unfinished`."""
    facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    listed = {FACTS, *(facts.get("files", []) if isinstance(facts, dict) else [])}
    return {name for name in contents(folder) if name in listed or any(fnmatch(name, one) for one in unfinished)}


def check_ours(folder: Path, unfinished: tuple[str, ...] = ()) -> None:
    """Raises UserError if a folder holds a file that this project did not write, according to the facts there.

    unfinished: patterns, as of `fnmatch`, of the files of an unfinished run, which are accepted too.
    """
    ours = written(folder, unfinished)
    foreign = [name for name in contents(folder) if name not in ours]
    if foreign:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{folder}: holds {foreign[0]}{others}, which this stage did not write and will not remove; move it, or "
            "choose another folder"
        )


def check_output(path: Path, file: bool = False) -> None:
    """Raises UserError if a folder, or a `file`, cannot be written at `path` or the other kind exists there."""
    if path.exists() and path.is_dir() == file:
        there, wanted = ("folder", "file") if file else ("file", "folder")
        raise UserError(f"{path}: is a {there}, and a {wanted} is to be written there; choose another output")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with TemporaryDirectory(prefix=".writable-", dir=parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror} in {parent}); choose another output") from error


def _apply_umask(path: Path) -> None:
    """Gives files the mode of the umask; safetensors makes its own readable by their owner only."""
    umask = os.umask(0o077)
    os.umask(umask)
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.chmod(file.stat().st_mode | (0o666 & ~umask))


def check_new(path: Path, overwrite: bool, flag: str = "--output", file: bool = False) -> None:
    """Raises UserError if `path`, set by `flag`, exists and may not be overwritten, or if it cannot be written.

    file: `path` is to be a file, not a folder. A folder may be overwritten if this project wrote all of it.
    """
    empty = path.is_dir() and not contents(path)
    if path.exists() and not overwrite and not empty:
        raise UserError(f"{path}: is there already; choose another {flag}, or pass --overwrite")
    if path.is_dir():
        check_ours(path)
    check_output(path, file)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
