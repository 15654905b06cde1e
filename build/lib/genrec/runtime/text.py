"""Reading of text files from users: UTF-8 with or without a byte order mark, any line ends, plain or gzip."""

import io
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from genrec.runtime.errors import UserError

BLOCK = 8 << 20  # bytes of text to read at once
LONGEST = 64 << 20  # bytes of a line; a longer one means that the file is not text in lines
_PACKED = 1 << 18  # bytes of gzip data to decompress at once
_BOM, _GZ = b"\xef\xbb\xbf", b"\x1f\x8b"

logger = logging.getLogger(__name__)


def read_bytes(path: Path, hint: str = "check the path") -> bytes:
    """Reads a file. Raises UserError, which ends in `hint`, if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; {hint}") from error
    except OSError as error:  # such as a link to itself, a name too long, or no permission
        raise UserError(f"{path}: cannot be read ({error.strerror}); {hint}") from error


def read_text(path: Path) -> str:
    """Reads a file as text without its byte order mark; invalid UTF-8 becomes U+FFFD.

    Raises UserError if the file is missing, cannot be read, or is UTF-16.
    """
    data = read_bytes(path)
    refuse_utf16(path, data)
    return data.removeprefix(_BOM).decode("utf-8", "replace")


def read_rows(path: Path) -> Iterator[tuple[int, str]]:
    """Iterates over (number, stripped line) of the lines that are not blank; numbers start at 1."""
    rows = enumerate(io.StringIO(read_text(path), newline=None), 1)
    return ((number, line.strip()) for number, line in rows if line.strip())


def read_json(path: Path) -> object:
    """Reads a JSON file. Raises UserError if it is missing, is not JSON, or has a duplicate key."""
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_duplicates(path, pairs))
    except RecursionError as error:
        raise UserError(f"{path}: nested too deep to be read; fetch or write it again") from error
    except ValueError as error:  # JSONDecodeError, or int's own for a number with too many digits
        raise UserError(f"{path}: not valid JSON, perhaps truncated ({error}); fetch or write it again") from error


def _without_duplicates(path: Path, pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path}: key {twice[:60]!r} stands twice; keep one")
    return result


def read_lines(path: Path) -> Iterator[str]:
    """Iterates over the lines, with their ends, of a plain or gzip file of any size; decodes as `read_text` does."""
    for block in read_blocks(path):
        yield from io.StringIO(block.decode("utf-8", "replace"), newline="")


def read_blocks(path: Path, progress: Callable[[int], None] = lambda position: None) -> Iterator[bytes]:
    """Iterates over a plain or gzip file in blocks of whole lines with their line ends, without a byte order mark.

    progress: called with the number of file bytes read so far. Data after the end of the gzip stream are skipped with a
    warning. Raises UserError for a damaged or truncated gzip, UTF-16, or a line longer than `LONGEST`.
    """
    rest, first = b"", True
    with path.open("rb") as file:
        zipped = file.read(2) == _GZ
        file.seek(0)
        for block in _unpacked(path, file) if zipped else iter(lambda: file.read(BLOCK), b""):
            progress(file.tell())
            if first:
                refuse_utf16(path, block)
            block = rest + (block.removeprefix(_BOM) if first else block)
            end, first = block.rfind(b"\n") + 1, False
            rest = block[end:]
            if len(rest) > LONGEST:
                raise UserError(f"{path}: a line of more than {LONGEST >> 20} MiB; records must stand on lines")
            if end:
                yield block[:end]
    if rest:
        yield rest + b"\n"


def refuse_utf16(path: Path, start: bytes) -> None:
    """Raises UserError if a file beginning with `start` is UTF-16, as of PowerShell's `>` or Excel's "Unicode text"."""
    marked = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    latin = len(start) > 3 and (start[:4:2] == b"\0\0") != (start[1:4:2] == b"\0\0")  # ASCII without a mark
    if marked or latin:
        raise UserError(f"{path}: is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW")


def _unpacked(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Iterates over the text of a gzip file of one or more members in non-empty blocks."""
    member, data = zlib.decompressobj(wbits=31), file.read(_PACKED)
    while data:
        try:
            block = member.decompress(data, BLOCK)
        except zlib.error as error:
            raise UserError(f"{path}: damaged gz ({error}); fetch it again") from error
        if block:
            yield block
        if not member.eof:
            data = member.unconsumed_tail or file.read(_PACKED)
            continue
        data = member.unused_data + file.read(_PACKED)
        if data and not data.startswith(_GZ):
            left = path.stat().st_size - file.tell() + len(data)
            logger.warning(f"{path}: {left:,} bytes after the end of the gz, which are no gz, are left out")
            return
        if data:
            member = zlib.decompressobj(wbits=31)
    if not member.eof:
        raise UserError(f"{path}: truncated gz: it ends before its text does; fetch it again")
