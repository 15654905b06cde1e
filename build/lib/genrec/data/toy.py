"""A toy data set that a small model can learn: users with stable tastes over a hierarchical catalogue.

The catalogue has categories, shelves within categories and items on shelves. An identifier encodes category, shelf and
place on the shelf, and its fourth code separates items in the same place. As in real data, the trie branches widely at
the first two levels and hardly after, and a few items share an identifier. A user has a few favourite shelves, mostly
stays on one and mostly moves to the next item there. Time is global and cut 8:1:1.

`new_items` is the share of the catalogue that is released over time, on any shelf, and has no interactions before, so
that validation and test contain cold items. Shelves are then few and large: the old items of one fill a list. Every
item has a text embedding: the sum of category, shelf, position on the shelf and an equally large part of its own. A
model that reads it can place a new item. Identifiers built from it (build_index) encode the shelf in their first codes;
the last code depends on the item alone and cannot be predicted for a cold item.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.data.catalogue import Catalogue
from genrec.data.splits import SPLITS, Splits, save_texts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path

FAVOURITES, SHARING = 3, 6
STAY = 0.75  # probability of staying on the shelf
OUT = (0.5, 1.3)  # release times of new items; nine tenths of the interactions are before 1.2
WIDTH, OWN = 64, 1.0  # of an embedding; scale of the item's own part, beside parts of scale 1
EMBEDDINGS = "embeddings.npy"


@dataclass(frozen=True)
class Layout:
    categories: int
    shelves: int  # per category
    follow: float  # probability that a user who stays on the shelf takes the next item

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
        """Writes the released layout in its text form, and the embeddings, if any."""
        save_texts(self.splits, folder)
        self.catalogue.save(folder / f"{folder.name}.index.json")
        if self.embeddings is not None:
            with atomic_path(folder / EMBEDDINGS) as partial, partial.open("wb") as file:
                np.save(file, self.embeddings)


def make_toy(
    seed: int = 0, n_items: int = 1000, n_users: int = 2000, mean_length: float = 10, new_items: float = 0
) -> Toy:
    """Makes a toy data set, the same for the same arguments; users with fewer than two training items are dropped.

    Raises UserError for sizes too small to fill the splits.
    """
    rng = np.random.default_rng(seed)
    layout = LARGE_SHELVES if new_items else SMALL_SHELVES
    shelf_of = np.sort(rng.integers(layout.all, size=n_items))
    identifiers = _identifiers(rng, shelf_of, layout)
    shelves = [np.flatnonzero(shelf_of == shelf) for shelf in range(layout.all)]
    stocked = np.array([shelf for shelf, items in enumerate(shelves) if len(items)])
    release = _release_times(seed, n_items, new_items)
    visited = rng.zipf(1.5, size=len(stocked)).clip(max=10).astype(float)  # makes some shelves popular
    histories, times = [], []
    for _ in range(n_users + n_users // 8):  # spare users, as some start too late to have two training items
        favourites = rng.choice(stocked, size=FAVOURITES, replace=False, p=visited / visited.sum())
        walk = _walk(rng, [shelves[s] for s in favourites], 4 + rng.poisson(mean_length - 4), layout.follow)
        history = np.array(walk)
        time = rng.random() + np.cumsum(rng.exponential(0.03, size=len(history)))
        histories.append(history[time >= release[history]])
        times.append(time[time >= release[history]])
    cuts = np.quantile(np.concatenate(times), [0.8, 0.9])
    parts = [np.split(h, np.searchsorted(t, cuts)) for h, t in zip(histories, times, strict=True)]
    kept = [part for part in parts if len(part[0]) >= 2][:n_users]
    splits = Splits(*({u: part[i].tolist() for u, part in enumerate(kept)} for i in range(len(SPLITS))))
    if not all(any(splits[split].values()) for split in SPLITS):
        raise UserError(f"--n_users {n_users}, --n_items {n_items}: too few to fill every split; pass more")
    if not new_items:
        return Toy(splits, Catalogue(identifiers))
    return Toy(splits, Catalogue(identifiers), _embeddings(seed, shelf_of, layout))


def _release_times(seed: int, n_items: int, new_items: float) -> np.ndarray:
    """Returns the release time of each item (n_items,); -inf for items that exist from the start."""
    rng = np.random.default_rng([seed, 1])
    return np.where(rng.random(n_items) < new_items, rng.uniform(*OUT, size=n_items), -np.inf)


def _embeddings(seed: int, shelf_of: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns embeddings (n_items, WIDTH): category + shelf + position on the shelf + the item's own part."""
    rng = np.random.default_rng([seed, 2])
    categories, shelves, along = (rng.normal(size=(n, WIDTH)) for n in (layout.categories, layout.shelves, 2))
    place = np.arange(len(shelf_of)) - np.searchsorted(shelf_of, shelf_of)
    arc = place / (1 + place[np.searchsorted(shelf_of, shelf_of, side="right") - 1]) * np.pi  # a shelf is half a turn
    vectors = categories[shelf_of // layout.shelves] + shelves[shelf_of % layout.shelves]
    vectors += np.stack([np.cos(arc), np.sin(arc)], -1) @ along
    return (vectors + OWN * rng.normal(size=vectors.shape)).astype(np.float32)


def _walk(rng: np.random.Generator, shelves: list[np.ndarray], length: int, follow: float) -> list[int]:
    """Samples a history of distinct items: a step stays on the shelf or changes it, then takes the next item or any."""
    history: list[int] = []
    shelf, place = shelves[0], 0
    for _ in range(4 * length):  # bounded, for users who have seen everything on their shelves
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
    # Codes are shuffled so that their order carries no meaning, as in a learned codebook.
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
