"""Sources of item vectors: a file from the user, or texts and an encoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from genrec.identifiers.item_texts import ItemTexts, highest_number, item_names, read_texts
from genrec.identifiers.vectors import check_embeddings, load_embeddings
from genrec.runtime.errors import UserError
from genrec.runtime.files import file_sha256
from genrec.runtime.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from genrec.identifiers.embeddings import Encoder

logger = logging.getLogger(__name__)


class VectorSource(Protocol):
    @property
    def names(self) -> list[str]:
        """The raw id of every item, by number."""

    @property
    def about(self) -> dict:
        """Everything that determines the vectors."""

    @property
    def without(self) -> Sequence[int]:
        """Items without a text other than their raw id."""

    def all(self, folder: Path) -> Tensor:
        """Returns the vectors (n_items, d) of all items, float; computed ones are cached in `folder`."""

    def some(self, items: Sequence[int]) -> Tensor:
        """Returns the vectors (len(items), d) of some items, float."""


@dataclass(frozen=True)
class Vectors:
    """Vectors from a .npy file."""

    names: list[str]
    path: Path
    about: dict
    without: tuple[int, ...] = ()

    def all(self, folder: Path) -> Tensor:
        return load_embeddings(self.path, len(self.names))

    def some(self, items: Sequence[int]) -> Tensor:
        return load_embeddings(self.path, len(self.names))[list(items)]


@dataclass(frozen=True)
class Texts:
    """Vectors of texts, from an encoder that is loaded when it is needed."""

    names: list[str]
    read: ItemTexts
    load: Callable[[], Encoder]
    batch_size: int
    about: dict

    @property
    def without(self) -> list[int]:
        return self.read.without

    def all(self, folder: Path) -> Tensor:
        from genrec.identifiers.embeddings import write_embeddings

        path = write_embeddings(folder, self.load, self.read.texts, self.batch_size, self.about)
        return load_embeddings(path, len(self.names))

    def some(self, items: Sequence[int]) -> Tensor:
        import torch

        with progress_bar(len(items), "embed", "item") as bar:
            return torch.from_numpy(self.load().encode([self.read.texts[i] for i in items], self.batch_size, bar))


def open_source(
    folder: Path, *, embeddings: str | None, items: str | None, id_column: str | None, encoder: str | None,
    max_tokens: int, batch_size: int, dtype: str, strict: bool, count: int | None = None,
) -> VectorSource:  # fmt: skip
    """Opens the source selected by the flags of build_index, for the items of the data set `folder`.

    count: items of the catalogue, of which some may never occur; None: what items.parquet, metadata and splits say.
    Raises UserError for incompatible flags, a file that does not fit and, with `strict`, items without a text or broken
    rows.
    """
    if embeddings and (items or encoder):
        raise UserError(f"--embeddings {embeddings} takes the place of --items and --encoder; pass either")
    if not embeddings and not (items and encoder):
        lacking = "--encoder PATH" if items else "--items FILE"
        raise UserError(f"{lacking} is missing: pass --items FILE and --encoder PATH, or --embeddings FILE.npy")
    if min(max_tokens, batch_size) < 1:
        raise UserError(f"--max_tokens {max_tokens} and --encode_batch_size {batch_size} must be at least 1")
    if not embeddings and not Path(str(encoder)).is_dir():
        raise UserError(f"--encoder {encoder}: no such folder; it is a Hugging Face model with its tokenizer")
    names = item_names(folder, count, None if items is None else highest_number(Path(items), id_column))
    if embeddings:
        check_embeddings(Path(embeddings), len(names))
        return Vectors(
            names, Path(embeddings), {"embeddings": embeddings, "sha256": file_sha256(Path(embeddings))[:16]}
        )
    assert items is not None
    assert encoder is not None
    read = read_texts(Path(items), names, id_column)
    _report_problems(read, strict)
    about = {"texts": read.fingerprint, "encoder": encoder, "max_tokens": max_tokens, "dtype": f"torch.{dtype}"}
    load = partial(_load_encoder, encoder, max_tokens, dtype)
    return Texts(names, read, load, batch_size, about)


def _load_encoder(path: str, max_tokens: int, dtype: str) -> Encoder:
    """Loads the encoder, on the GPU if there is one."""
    import torch

    from genrec.identifiers.embeddings import Encoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Encoder.load(path, max_tokens=max_tokens, dtype=dtype, device=device)


def _report_problems(read: ItemTexts, strict: bool) -> None:
    n = len(read.texts)
    absent = ", ".join(f"{name} {count}" for name, count in read.absent.items() if count)
    logger.info(f"item texts: {n - len(read.without)} of {n} items; without a {absent or 'field: none'}; "
                f"{read.others} rows of other items, {read.twice} of items told before")  # fmt: skip
    for problem in read.problems():
        if strict:
            raise UserError(f"{problem}; mend them, or leave out --strict")
        logger.info(problem)
