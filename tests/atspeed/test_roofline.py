"""Floors of a request, worked by hand."""

import pandas as pd
import pytest

from atspeed.benchmark import floors
from atspeed.checkpoints.shapes import Shape
from atspeed.commands import roofline
from genrec.runtime.errors import UserError

SHAPE = Shape(
    hidden_size=10, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=100,
)  # fmt: skip
ROW = {"method": "gamma 0", "K": 2, "target calls": 4, "target tokens": 50}


def test_the_weights_of_a_shape():
    """A layer: q and o 10 x 10 each, k and v 10 x 5 each, gate, up and down 10 x 20 each."""
    assert floors.weights(SHAPE, None) == (3 * (200 + 100 + 600), 1000)
    assert floors.weights(SHAPE, 7) == (2700, 70)


@pytest.mark.parametrize(
    ("bandwidth", "rate", "seconds"),
    [
        (1e6, 1e12, 4 * (2700 + 1000) * 4 / 1e6),  # four calls read all weights of four bytes
        (1e12, 1e6, 2 * (50 * 2700 + (1 + 2 * 3) * 1000) / 1e6),  # 50 tokens, of which 7 are scored
    ],
)
def test_the_floor_is_the_larger_of_reading_and_computing(bandwidth, rate, seconds):
    device = floors.Device(bandwidth, {"float32": rate})
    assert floors.floor(ROW, 2700, 1000, device, "float32", batch=1, levels=4) == pytest.approx(seconds)


def test_a_benchmark_is_set_beside_its_floor(tmp_path, capsys):
    rows = [ROW | {"ms": 3.0}, ROW | {"method": "generate", "target tokens": 100, "ms": 6.0}]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv")
    roofline.main(str(tmp_path / "results.csv"), "llama-7b", "bfloat16", ("H200", "A100"))
    output = capsys.readouterr().out
    assert "6476 M weights in the layers, 131.1 M in the head" in output
    assert "H200: floor ms" in output
    assert "A100: generate / it" in output
    with pytest.raises(UserError, match="--devices abacus: choose from"):
        roofline.main(str(tmp_path / "results.csv"), "llama-7b", devices=("abacus",))
