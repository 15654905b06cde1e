"""Read the released `.npy` files, which are pickles, without ever executing one."""

import io
import pickle
from pathlib import Path

import numpy as np

from genrec.errors import UserError
from genrec.files import read_bytes

# All that a pickled array of dicts, lists, ints, strs and numpy scalars needs to name, as numpy 1 and 2 spell it.
_ADMITTED = {
    (f"{module}.multiarray", name) for module in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype")}
_BROKEN = (EOFError, AttributeError, ImportError, IndexError, KeyError, MemoryError, TypeError, ValueError)


class _Refused(pickle.UnpicklingError):
    pass


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid: object) -> object:
        raise _Refused(f"persistent id {pid!r}")


def read_npy_dict(path: Path) -> dict:
    """The dict inside a 0-dimensional object array. Nothing but dict, list, int, str and numpy scalars is built.

    Raises UserError if the file is missing, damaged, not a dict, or asks for anything else, which is named.
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
        value = _RestrictedUnpickler(stream).load()
    except _Refused as error:
        raise UserError(
            f"{path}: refused: the pickle asks for {error}, and only dict, list, int, str and numpy scalars are "
            "admitted; do not trust where it came from"
        ) from error
    except (pickle.UnpicklingError, *_BROKEN) as error:
        raise UserError(f"{path}: damaged or truncated ({error}); fetch it again with data/download.sh") from error
    value = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a dict user -> items")
    return value
