"""A toy data set that a small model can learn: users who follow tastes over a hierarchical catalogue.

The catalogue has categories, shelves within categories and items on shelves, and an identifier says where an item
stands: category, shelf, place on the shelf, and a fourth code that tells apart what shares a place. As in the real data
the trie is bushy for two levels and nearly a line after, and a few items share an identifier. A user has a few
favourite shelves, mostly stays on the shelf and mostly goes on to the next item there; time is global and cut 8:1:1.

With `new_items`, that share of the catalogue comes out over time, on any shelf, and nobody has an item before: so items
stand in validation and test that training does not know. Shelves are then few and large, so that the old items of one
fill a list. Every item has a text embedding: category, shelf, whereabouts on it, and as much of its own. Who reads
it can place a new item. Identifiers made of it (build_index) tell the shelf by their first codes, while the last is the
item's own, and who has not seen the item cannot know it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.data.catalogue import Catalogue
from genrec.data.splits import SPLITS, Splits, save_texts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path

FAVOURITES, SHARING = 3, 6
STAY = 0.75  # chance to stay on the shelf
OUT = (0.5, 1.3)  # when new items come out; nine tenths of the interactions lie before 1.2
WIDTH, OWN = 64, 1.0  # of an embedding; size of what is the item's own, beside parts of size 1
EMBEDDINGS = "embeddings.npy"


@dataclass(frozen=True)
class Layout:
    categories: int
    shelves: int  # of a category
    follow: float  # chance of a user who stays on the shelf to take the next item

    @property
    def all(self) -> int:
        return self.categories * self.shelves


SMALL_SHELVES, LARGE_SHELVES = Layout(24, 8, 0.7), Layout(12, 4, 0.5)


@dataclass(frozen=True)
class Toy:
    splits: Splits
    catalogue: Catalogue
    embeddings: np.ndarray | None = None  # (n_items, WIDTH) float32

    def save(self, folder: Path) -> None:
        """Write the released layout, in its text form."""
        save_texts(self.splits, folder)
        self.catalogue.save(folder / f"{folder.name}.index.json")
        if self.embeddings is not None:
            with atomic_path(folder / EMBEDDINGS) as partial, partial.open("wb") as file:
                np.save(file, self.embeddings)


def make_toy(
    seed: int = 0, n_items: int = 1000, n_users: int = 2000, mean_length: float = 10, new_items: float = 0
) -> Toy:
    """The same arguments always give the same data. Users with fewer than two training items are dropped.

    Raises UserError for sizes too small to fill the splits.
    """
    rng = np.random.default_rng(seed)
    layout = LARGE_SHELVES if new_items else SMALL_SHELVES
    shelf_of = np.sort(rng.integers(layout.all, size=n_items))
    identifiers = _identifiers(rng, shelf_of, layout)
    shelves = [np.flatnonzero(shelf_of == shelf) for shelf in range(layout.all)]
    stocked = np.array([shelf for shelf, items in enumerate(shelves) if len(items)])
    out = _out(seed, n_items, new_items)
    visited = rng.zipf(1.5, size=len(stocked)).clip(max=10).astype(float)  # some shelves are popular
    histories, times = [], []
    for _ in range(n_users + n_users // 8):  # some come too late to have two training items
        favourites = rng.choice(stocked, size=FAVOURITES, replace=False, p=visited / visited.sum())
        walk = _walk(rng, [shelves[s] for s in favourites], 4 + rng.poisson(mean_length - 4), layout.follow)
        history = np.array(walk)
        time = rng.random() + np.cumsum(rng.exponential(0.03, size=len(history)))
        histories.append(history[time >= out[history]])
        times.append(time[time >= out[history]])
    cuts = np.quantile(np.concatenate(times), [0.8, 0.9])
    parts = [np.split(h, np.searchsorted(t, cuts)) for h, t in zip(histories, times, strict=True)]
    kept = [part for part in parts if len(part[0]) >= 2][:n_users]
    splits = Splits(*({u: part[i].tolist() for u, part in enumerate(kept)} for i in range(len(SPLITS))))
    if not all(any(splits[split].values()) for split in SPLITS):
        raise UserError(f"--n_users {n_users}, --n_items {n_items}: too few to fill every split; pass more")
    if not new_items:
        return Toy(splits, Catalogue(identifiers))
    return Toy(splits, Catalogue(identifiers), _embeddings(seed, shelf_of, layout))


def _out(seed: int, n_items: int, new_items: float) -> np.ndarray:
    """When an item comes out (n_items,); -inf for those that were always there."""
    rng = np.random.default_rng([seed, 1])
    return np.where(rng.random(n_items) < new_items, rng.uniform(*OUT, size=n_items), -np.inf)


def _embeddings(seed: int, shelf_of: np.ndarray, layout: Layout) -> np.ndarray:
    """What a text would say: category, shelf, whereabouts on the shelf, and something of its own."""
    rng = np.random.default_rng([seed, 2])
    categories, shelves, along = (rng.normal(size=(n, WIDTH)) for n in (layout.categories, layout.shelves, 2))
    place = np.arange(len(shelf_of)) - np.searchsorted(shelf_of, shelf_of)
    arc = place / (1 + place[np.searchsorted(shelf_of, shelf_of, side="right") - 1]) * np.pi  # the shelf is half a turn
    vectors = categories[shelf_of // layout.shelves] + shelves[shelf_of % layout.shelves]
    vectors += np.stack([np.cos(arc), np.sin(arc)], -1) @ along
    return (vectors + OWN * rng.normal(size=vectors.shape)).astype(np.float32)


def _walk(rng: np.random.Generator, shelves: list[np.ndarray], length: int, follow: float) -> list[int]:
    """A history of distinct items: stay on the shelf and go on to the next item, or change the shelf."""
    history: list[int] = []
    shelf, place = shelves[0], 0
    for _ in range(4 * length):  # a bound, for users who have seen all of their shelves
        if len(history) == length:
            break
        if rng.random() >= STAY:
            shelf = shelves[rng.integers(len(shelves))]
            place = rng.integers(len(shelf))
        place = (place + 1) % len(shelf) if rng.random() < follow else rng.integers(len(shelf))
        if shelf[place] not in history:
            history.append(int(shelf[place]))
    return history


def _identifiers(rng: np.random.Generator, shelf_of: np.ndarray, layout: Layout) -> dict[int, tuple[str, ...]]:
    # Codes are shuffled, so that a number's size means nothing, as in a learned codebook.
    codes = [rng.permutation(64) for _ in range(4)]
    identifiers = {}
    for shelf in np.unique(shelf_of):
        for place, item in enumerate(np.flatnonzero(shelf_of == shelf)):
            category, within = divmod(shelf, layout.shelves)
            path = (category, within + 5 * category % 56, place // 2 * 7 % 64, place % 2)
            identifiers[int(item)] = tuple(f"<{'abcd'[i]}_{codes[i][path[i]]}>" for i in range(4))
    for item in rng.choice(len(shelf_of) - 1, size=SHARING, replace=False):
        identifiers[int(item)] = identifiers[int(item) + 1]
    return identifiers
