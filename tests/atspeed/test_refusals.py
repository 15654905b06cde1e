"""Every script, started with what it must refuse: one clear line, a non-zero code, and nothing left behind."""

import os
import pickle

import numpy as np
import pytest

from conftest import STAGES, script
from genrec.data.toy import make_toy
from genrec.runtime.files import write_json
from genrec.runtime.text import read_json


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def _npy(data, value):
    """The three splits as .npy files, the first of which is a pickle of `value`."""
    for name in ("training_dict", "validation_dict", "testing_dict"):
        np.save(data / f"{name}.npy", {0: [1, 2]}, allow_pickle=True)
    with (data / "training_dict.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(value, file)


def missing_file(data):
    (data / "sequential_valid.txt").unlink()


def truncated_json(data):
    path = data / "toy.index.json"
    path.write_text(path.read_text()[:1000])


def malicious_pickle(data):
    _npy(data, Malicious(data / "executed"))


def no_history(data):
    path = data / "sequential_train.txt"
    test = next(r.split()[0] for r in (data / "sequential_test.txt").read_text().splitlines() if len(r.split()) > 1)
    for path in (data / "sequential_train.txt", data / "sequential_valid.txt"):
        rows = [row.split() for row in path.read_text().splitlines()]
        path.write_text("".join(" ".join(row[:1] if row[0] == test else row) + "\n" for row in rows))


def other_index(data):
    path = data / "toy.index.json"
    index = read_json(path)
    write_json(path, {item: [t.replace("_", "_9") for t in tokens] for item, tokens in list(index.items())[:40]})


REFUSALS = {
    "a missing file": (missing_file, (), "sequential_valid.txt: no such file"),
    "a mistyped flag": (None, ("--sede", "3"), "unknown flag --sede; did you mean --seed?"),
    "a truncated JSON": (truncated_json, (), "toy.index.json: not valid JSON, perhaps truncated"),
    "a malicious pickle": (malicious_pickle, (), "training_dict.npy: refused: the pickle asks for posix.system"),
    "a user without history": (no_history, (), "has items to predict but no history"),
    "an identifier index of another data set": (other_index, (), "is it the index of another data set?"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_bad_input_ends_in_one_clear_line_and_leaves_nothing_behind(tmp_path, stage, refusal):
    corrupt, flags, message = REFUSALS[refusal]
    make_toy(n_items=300, n_users=60).save(tmp_path / "data" / "toy")
    if corrupt:
        corrupt(tmp_path / "data" / "toy")
    output, code = script(stage, tmp_path, *flags)
    assert code == 2
    assert output.count("\n") == 1, output
    assert output.startswith("error: ")
    assert message in output
    assert not (tmp_path / "output").exists(), "something was written"
    assert not (tmp_path / "data" / "toy" / "executed").exists(), "the pickle was executed"
