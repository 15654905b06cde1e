"""A recommender by its folders and files: opened where it is checked, loaded where it recommends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from atspeed.recommend.served import ServedCatalogue
from genrec.identifiers.item_texts import read_titles

if TYPE_CHECKING:
    from atspeed.recommend.recommender import Recommender

PATHS = ("target_model", "draft_model", "index", "raw_ids", "stop_list", "titles")


@dataclass(frozen=True)
class RecommenderSetting:
    """Paths as in `ServedCatalogue.open`; the rest as in `Recommender`."""

    target_model: str
    draft_model: str | None = None
    index: str | None = None
    raw_ids: str | None = None
    stop_list: str | None = None
    titles: str | None = None  # a file of items and their titles, see `read_titles`
    dtype: str = "float32"
    batch_size: int = 32
    draft_width: int | None = None
    gamma: int = 3

    def absolute(self) -> RecommenderSetting:
        """The same, for processes that run elsewhere."""
        named = {name: getattr(self, name) for name in PATHS}
        found = {name: str(Path(path).absolute()) for name, path in named.items() if path is not None}
        return replace(self, **found)  # type: ignore[arg-type]

    def open(self) -> tuple[ServedCatalogue, dict[int, str]]:
        """The catalogue, and titles by item number. Raises UserError for what is not there or does not fit."""
        served, _ = ServedCatalogue.open(
            self.target_model, self.draft_model, index=self.index, raw_ids=self.raw_ids, stop_list=self.stop_list
        )
        return served, read_titles(Path(self.titles), served.raw_ids) if self.titles else {}

    def load(self, device: str) -> Recommender:
        """The models, ready. Raises UserError as `open` does."""
        from atspeed.recommend.recommender import Recommender

        return Recommender.from_pretrained(
            self.target_model, self.draft_model, index=self.index, raw_ids=self.raw_ids, stop_list=self.stop_list,
            dtype=self.dtype, device=device, batch_size=self.batch_size, draft_width=self.draft_width, gamma=self.gamma,
        )  # fmt: skip
