"""Safe reading of the released `.npy` files, which are pickles: no code in them is executed."""

import io
import pickle
import pickletools
import re
import tokenize
from pathlib import Path

import numpy as np

from genrec.runtime.errors import UserError
from genrec.runtime.text import read_bytes

# What numpy's header reader and the unpickler raise for damaged bytes.
_BROKEN = (ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, SyntaxError, TypeError,
           ValueError, pickle.UnpicklingError, tokenize.TokenError)  # fmt: skip


class _Refused(pickle.UnpicklingError):
    pass


# numpy's classes trust the state in a pickle: a forged one may crash the process, or worse. So numpy's names are
# mapped to the classes below, which accept integers and lists only. Each has a __setstate__, without which a pickle
# could set attributes of the class itself.


class _Dtype:
    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"O8?|[iu][1248]", code):
            raise _Refused(f"numpy.dtype({code!r})")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def integers(self, data: bytes) -> list[int]:
        return np.frombuffer(data, np.dtype(self.code).newbyteorder(self.order)).tolist()


class _Array:
    def __init__(self, *_: object) -> None:
        self.shape, self.values = (), []

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, dtype, _, data = state
        self.values = data if isinstance(data, list) else dtype.integers(data)


class _Scalar:
    def __new__(cls, dtype: _Dtype, data: bytes) -> int:
        (value,) = dtype.integers(data)
        return value

    def __setstate__(self, state: object) -> None:
        raise TypeError("a scalar has no state")


# All names that a pickled array of dicts, lists, ints, strs and numpy integers needs, in the spelling of numpy 1 and 2.
_ADMITTED = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype} | {
    (f"{module}.multiarray", name): ours
    for module in ("numpy.core", "numpy._core")
    for name, ours in (("_reconstruct", _Array), ("scalar", _Scalar))
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: object) -> object:
        raise _Refused(f"persistent id {pid!r}")


def _check_memo(stream: io.BytesIO) -> None:
    """Raises ValueError for an implausible memo index, for which the unpickler could allocate tens of GB."""
    for opcode, argument, position in pickletools.genops(stream):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > position:
            raise ValueError(f"memo {argument} at byte {position}")


def read_npy_dict(path: Path) -> dict:
    """Reads the dict in a 0-dimensional object array, with numpy integers and arrays of them as ints and lists of ints.

    Raises UserError if the file is missing, damaged or not a dict, or refers to any other type, which is named.
    """
    stream = io.BytesIO(read_bytes(path))
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(stream)
        if shape != () or dtype != np.dtype(object):
            raise UserError(f"{path}: holds an array of shape {shape} and type {dtype}, not a dict user -> items")
        start = stream.tell()
        _check_memo(stream)
        stream.seek(start)
        value = _RestrictedUnpickler(stream).load()
    except _Refused as error:
        raise UserError(
            f"{path}: refused: the pickle asks for {error}, and only dict, list, int, str and numpy integers are "
            "admitted; do not trust where it came from"
        ) from error
    except _BROKEN as error:
        raise UserError(f"{path}: damaged or truncated ({error}); fetch it again with data/download.sh") from error
    if isinstance(value, _Array) and value.shape == () and len(value.values) == 1:
        (value,) = value.values
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__.strip('_').lower()}, not a dict user -> items")
    return {user: _flat(items) for user, items in value.items()}


def _flat(items: object) -> object:
    return items.values if isinstance(items, _Array) and len(items.shape) == 1 else items
