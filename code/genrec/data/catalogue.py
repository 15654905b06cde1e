"""The catalogue: all items and their identifiers."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.runtime.errors import UserError
from genrec.runtime.files import sha256, write_json
from genrec.runtime.text import read_json, read_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Identifier = tuple[str, ...]
_TOKEN = re.compile(r"<[^<>]+>")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")  # of an item, as text


@dataclass(frozen=True)
class Catalogue:
    """Items and their identifiers. Items may share an identifier; all of them can still be recommended."""

    identifiers: dict[int, Identifier]  # item -> one token per level

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Reads a JSON object item -> [token, …], or the tokens as one text, each in angle brackets.

        Raises UserError that names file, key and value if an item is not an integer >= 0, an identifier is not a list
        of tokens, identifiers differ in length, or a token occurs at two levels.
        """
        content = read_json(path)
        if not isinstance(content, dict) or not content:
            raise UserError(f"{path}: not a JSON object that maps items to identifiers")
        identifiers: dict[int, Identifier] = {}
        level_of: dict[str, int] = {}
        for key, tokens in content.items():
            if not _NUMBER.fullmatch(key):
                raise UserError(f"{path}: item {key!r} is not an integer >= 0")
            if isinstance(tokens, str) and not _TOKEN.sub("", tokens).strip():
                tokens = _TOKEN.findall(tokens)  # "<|sid_begin|><s_a_1><s_b_2><|sid_end|>", as of OneRec
            if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t.strip() for t in tokens):
                raise UserError(f"{path}: item {key}: {tokens!r} is not a list of tokens")
            length = len(next(iter(identifiers.values()), tokens))
            if len(tokens) != length:
                raise UserError(
                    f"{path}: item {key}: {' '.join(tokens)} has {len(tokens)} tokens, the others have {length}"
                )
            for level, token in enumerate(tokens):
                if level_of.setdefault(token, level) != level:
                    raise UserError(
                        f"{path}: item {key}: token {token} stands at level {level} here and at level "
                        f"{level_of[token]} elsewhere"
                    )
            identifiers[int(key)] = tuple(tokens)
        return cls(identifiers)

    def save(self, path: Path) -> None:
        write_json(path, {str(item): list(tokens) for item, tokens in sorted(self.identifiers.items())})

    def without(self, items: Iterable[int]) -> Catalogue:
        """Returns the catalogue without `items`; an identifier that they share with other items remains for those.

        A trie of the result cannot lead to `items`. Histories may still contain them, so prompts and fingerprints are
        those of the whole catalogue.
        """
        gone = set(items)
        return Catalogue({item: tokens for item, tokens in self.identifiers.items() if item not in gone})

    @property
    def levels(self) -> int:
        """L, the number of tokens in an identifier."""
        return len(next(iter(self.identifiers.values())))

    @cached_property
    def items_of(self) -> dict[Identifier, list[int]]:
        """Identifier -> its items, in ascending order."""
        items = defaultdict(list)
        for item in sorted(self.identifiers):
            items[self.identifiers[item]].append(item)
        return dict(items)

    def wholly_within(self, items: Set[int]) -> list[Identifier]:
        """The identifiers, sorted, all of whose items are among these."""
        named = {self.identifiers[item] for item in items if item in self.identifiers}
        return sorted(each for each in named if items.issuperset(self.items_of[each]))

    @cached_property
    def tokens(self) -> list[str]:
        """All tokens, by level and then in natural order (<a_2> before <a_10>)."""
        by_level = [set(column) for column in zip(*self.identifiers.values(), strict=True)]
        return [token for level in by_level for token in sorted(level, key=_natural)]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of items and identifiers that does not depend on the file's formatting."""
        return sha256(json.dumps(sorted(self.identifiers.items())).encode())[:16]

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Returns the token ids (n_items, L) of the identifiers, long, in ascending order of the items.

        Raises UserError if the tokenizer lacks a token.
        """
        import torch

        vocabulary = tokenizer.get_vocab()
        absent = [token for token in self.tokens if token not in vocabulary]
        if absent:
            raise UserError(
                f"the tokenizer lacks {len(absent)} of {len(self.tokens)} identifier tokens, such as {absent[0]}: "
                "the model was fine-tuned on another catalogue"
            )
        return torch.tensor(
            [[vocabulary[token] for token in self.identifiers[item]] for item in sorted(self.identifiers)]
        )


def _natural(token: str) -> tuple[list[tuple[int, str] | str], str]:
    """Returns a natural sort key; the token itself breaks ties such as <a_1> and <a_01>, for a reproducible order."""
    parts = re.split(r"([0-9]+)", token)
    parts[1::2] = [(len(digits), digits) for digits in (part.lstrip("0") for part in parts[1::2])]  # of any length
    return parts, token


def read_stop_list(path: Path, catalogue: Catalogue) -> set[int]:
    """Reads the items not to recommend from a file of item numbers, one per line, from 0 as in the identifier index.

    Raises UserError that names file and line if a line is not the number of an item of `catalogue`, or the file if no
    item would be left.
    """
    items: set[int] = set()
    for number, line in read_rows(path):
        text = re.sub(r"\.0+$", "", line)  # pandas writes integers so if some are missing
        if not _NUMBER.fullmatch(text):
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is not the number of an item; write one a line, from 0 as in "
                "the identifier index (items.parquet, where there is one, gives the number of a raw id)"
            )
        if int(text) not in catalogue.identifiers:
            raise UserError(
                f"{path}, line {number}: item {text} is not in the catalogue; remove the line, or name the index "
                "that holds it with --index FILE"
            )
        items.add(int(text))
    if len(items) == len(catalogue.identifiers):
        raise UserError(f"{path}: names all {len(items)} items, so that none is left to recommend; remove some lines")
    return items


def find_index(folder: Path, dataset: str) -> Path:
    """Returns the only `<dataset>.*.json` in the folder that is neither interactions nor texts of LC-Rec's format.

    Raises UserError if there is none, or more than one.
    """
    others = (".inter.json", ".item.json", ".user.json", ".review.json", ".test.json")
    found = sorted(path for path in folder.glob(f"{dataset}.*.json") if not path.name.endswith(others))
    if len(found) != 1:
        what = f"{len(found)} files match ({', '.join(p.name for p in found)})" if found else "no file matches"
        raise UserError(f"{folder}/{dataset}.*.json: {what}; name the identifier index with --index FILE")
    return found[0]
