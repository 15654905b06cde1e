"""Write the toy data set: users who follow tastes over a hierarchical catalogue, deterministic in its arguments.

atspeed make-toy --output data/toy --seed 0 --n_items 1000 --n_users 2000

--new_items 0.35: that share of the items comes out over time, and every item has a text embedding.
"""

from pathlib import Path

from genrec.data.toy import make_toy
from genrec.runtime.artefacts import hold
from genrec.runtime.files import check_output


def main(
    output: str,
    seed: int = 0,
    n_items: int = 1000,
    n_users: int = 2000,
    mean_length: float = 10.0,
    new_items: float = 0.0,
) -> None:
    toy = make_toy(seed, n_items, n_users, mean_length, new_items)
    check_output(Path(output))
    hold(Path(output))
    toy.save(Path(output))
    print(f"{output}: {len(toy.splits.train)} users, {len(toy.splits.items())} items")
