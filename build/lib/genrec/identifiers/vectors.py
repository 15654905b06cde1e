"""Item vectors from a .npy file with one row per item."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 4096  # checked at a time


def check_embeddings(path: Path, n_items: int) -> np.ndarray:
    """Checks a .npy file of floats (n_items, d), row = item number, and returns it memory-mapped.

    Raises UserError that names the file and what is wrong with it.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"--embeddings {path}: no such file") from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"--embeddings {path}: not a .npy file of numbers, or truncated ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.shape[-1]:
        raise UserError(f"--embeddings {path}: holds shape {getattr(array, 'shape', None)}, not (items, numbers)")
    if array.dtype not in (np.float16, np.float32, np.float64) or not array.dtype.isnative:
        raise UserError(f"--embeddings {path}: holds {array.dtype}, not float16, float32 or float64")
    if len(array) != n_items:
        raise UserError(f"--embeddings {path}: has {len(array)} rows, but the data set has {n_items} items; row = item")
    for start in range(0, len(array), ROWS):
        bad = ~np.isfinite(array[start : start + ROWS]).all(-1)
        if bad.any():
            raise UserError(f"--embeddings {path}: row {start + int(bad.argmax())} holds a value that is not finite")
    return array


def load_embeddings(path: Path, n_items: int) -> Tensor:
    """Loads embeddings (n_items, d) from a .npy file in their stored dtype. Raises UserError as `check_embeddings`."""
    import torch

    return torch.from_numpy(check_embeddings(path, n_items))
