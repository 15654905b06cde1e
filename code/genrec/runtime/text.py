"""The one reader of user text: UTF-8 with or without a byte order mark, any line ends, plain or gz."""

import io
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from genrec.runtime.errors import UserError

BLOCK = 8 << 20  # bytes of text that are read at once
LONGEST = 64 << 20  # bytes of a line, beyond which the file is no text of lines
_PACKED = 1 << 18  # bytes of a gz that are unpacked at once
_BOM, _GZ = b"\xef\xbb\xbf", b"\x1f\x8b"

logger = logging.getLogger(__name__)


def read_bytes(path: Path, hint: str = "check the path") -> bytes:
    """Raises UserError, which ends in `hint`, if the file is missing or cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; {hint}") from error
    except OSError as error:  # a link to itself, a name too long, no permission
        raise UserError(f"{path}: cannot be read ({error.strerror}); {hint}") from error


def read_text(path: Path) -> str:
    """All of a file, but for a byte order mark. What is not UTF-8 becomes U+FFFD.

    Raises UserError if the file is missing, cannot be read, or is UTF-16.
    """
    data = read_bytes(path)
    refuse_utf16(path, data)
    return data.removeprefix(_BOM).decode("utf-8", "replace")


def read_rows(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that is not blank, from 1."""
    rows = enumerate(io.StringIO(read_text(path), newline=None), 1)
    return ((number, line.strip()) for number, line in rows if line.strip())


def read_json(path: Path) -> object:
    """Raises UserError if the file is missing, not JSON, or names a key twice."""
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_duplicates(path, pairs))
    except RecursionError as error:
        raise UserError(f"{path}: nested too deep to be read; fetch or write it again") from error
    except ValueError as error:  # a number of 5,000 digits is another than json's own
        raise UserError(f"{path}: not valid JSON, perhaps truncated ({error}); fetch or write it again") from error


def _without_duplicates(path: Path, pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path}: key {twice[:60]!r} stands twice; keep one")
    return result


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file of any size, plain or gz, with their ends; otherwise as `read_text`."""
    for block in read_blocks(path):
        yield from io.StringIO(block.decode("utf-8", "replace"), newline="")


def read_blocks(path: Path, progress: Callable[[int], None] = lambda position: None) -> Iterator[bytes]:
    """The text of a file, plain or gz, in blocks of whole lines, each with its line end; without a byte order mark.

    progress is told the bytes of the file that have been read. What stands after the end of a gz is left out, with a
    warning. Raises UserError for a damaged or truncated gz, UTF-16, or an endless line.
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
    """Raises UserError if a file that starts so is UTF-16, as PowerShell's `>` and Excel's "Unicode text" write it."""
    marked = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    latin = len(start) > 3 and (start[:4:2] == b"\0\0") != (start[1:4:2] == b"\0\0")  # without a mark
    if marked or latin:
        raise UserError(f"{path}: is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW")


def _unpacked(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The text of a gz of one or more members, in blocks that are not empty."""
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
