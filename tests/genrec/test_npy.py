"""The restricted unpickler: reads what numpy writes, executes nothing."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from genrec.data.npy import read_npy_dict
from genrec.runtime.errors import UserError

DATA = {0: [3, 1], 7: [np.int64(2), np.int32(5)], np.int16(9): [], 2: np.array([4, 6]), "key": ["a"]}
READ = {0: [3, 1], 7: [2, 5], 9: [], 2: [4, 6], "key": ["a"]}


def npy_bytes(value) -> bytes:
    """A `.npy` of a 0-dimensional object array, with any pickle in it."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header = header.ljust(128 - 10 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickle.dumps(value, protocol=3)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Disguised(np.ndarray):
    """An array to numpy's `_reconstruct`, which runs what the state says."""

    def __reduce__(self):
        reconstruct, arguments, _ = super().__reduce__()
        return reconstruct, arguments, self.marker

    def __setstate__(self, state):
        Path(state).touch()


def disguised(marker):
    array = np.zeros(1).view(Disguised)
    array.marker = marker
    return array


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_reads_what_numpy_writes(tmp_path, module):
    path = tmp_path / "a.npy"
    content, changes = re.subn(rb"cnumpy\._?core\.", f"c{module}.".encode(), npy_bytes(np.array(DATA, dtype=object)))
    assert changes
    path.write_bytes(content)
    assert read_npy_dict(path) == READ
    np.save(path, DATA, allow_pickle=True)
    result = read_npy_dict(path)
    assert result == READ
    assert {type(item) for user in (0, 7, 2) for item in result[user]} == {int}, "numpy's own types do not come through"


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (lambda marker: Call(os.system, f"touch {marker}"), "posix.system"),
        (lambda marker: {1: [Call(eval, f"open({marker!r}, 'w').close()")]}, "builtins.eval"),
        (disguised, ".Disguised"),
        (lambda marker: Call(Path(marker).touch), "builtins.getattr"),
        (lambda marker: Call(np.savetxt, marker, [1]), "numpy.savetxt"),
    ],
    ids=["os.system", "eval", "subclass", "bound method", "numpy function"],
)
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(tmp_path, payload, named):
    path, marker = tmp_path / "bad.npy", tmp_path / "marker"
    path.write_bytes(npy_bytes(payload(str(marker))))
    with pytest.raises(UserError, match=rf"bad\.npy: refused: .*{re.escape(named)}"):
        read_npy_dict(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)
    assert marker.exists(), "the payload does nothing even where it is loaded, so the test shows nothing"


def test_a_dotted_name_does_not_reach_beyond_what_is_admitted(tmp_path):
    """Protocol 4 resolves `ndarray.tofile` inside `numpy`."""
    path = tmp_path / "bad.npy"
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    path.write_bytes(npy_bytes(None)[:128] + dotted)
    with pytest.raises(UserError, match=r"asks for numpy\.ndarray\.tofile"):
        read_npy_dict(path)


def test_every_truncation_and_forged_state_is_one_user_error(tmp_path):
    """Forged states crashed the process (segmentation fault) while numpy's own classes were built."""
    path = tmp_path / "cut.npy"
    np.save(path, DATA, allow_pickle=True)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    forged = []
    for _ in range(500):
        content = bytearray(whole)
        for place in rng.integers(len(whole), size=2):
            content[place] = rng.integers(128)
        forged.append(bytes(content))
    for content in [*(whole[:length] for length in range(len(whole))), *forged]:
        path.write_bytes(content)
        try:
            read_npy_dict(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017, most forgeries fail, a few do no harm
        else:
            assert len(content) == len(whole), "a truncated file was read"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "damaged or truncated"),
        (bytes(range(256)), "damaged or truncated"),
        (np.array([1, 2]), r"shape \(2,\) and type int64, not a dict"),
        (np.array([[1], [2, 3]], dtype=object), r"shape \(2,\) and type object, not a dict"),
        (npy_bytes([1, 2]), "holds a list, not a dict"),
    ],
    ids=["missing", "empty", "random bytes", "numbers", "array of lists", "a list"],
)
def test_anything_else_is_one_error_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=rf"bad\.npy: .*{message}"):
        read_npy_dict(path)
