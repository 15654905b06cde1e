"""Lists of items for histories of items, exactly as `generate` would give them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from atspeed.benchmark.methods import GAMMA
from atspeed.checkpoints.loading import check_same_vocabulary, load_model, load_tokenizer
from atspeed.checkpoints.shapes import check_dtype
from atspeed.prompts import PromptEncoder, left_pad
from atspeed.recommend.request_tree import Node, request_tree
from atspeed.recommend.served import Item, ServedCatalogue
from atspeed.template import LC_REC, PromptTemplate
from beamsd import Auto, Prefix, Settings, Trie
from genrec.data.catalogue import Catalogue
from genrec.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SERVED = 16  # allow-lists whose tries are kept


@dataclass(frozen=True)
class Recommendation:
    """A list for one history, best first. It is shorter than asked for where too few items are left."""

    items: list[Item]
    scores: list[float]  # cumulative log-probabilities of their identifiers
    target_calls: int = field(default=0, compare=False)  # forwards of the target that it took
    accepted_levels: int = field(default=0, compare=False)  # drafted levels that the target accepted, of all its rounds


@dataclass(frozen=True)
class ServedItems:
    """The items that may be recommended, all or those of an allow-list."""

    trie: Trie
    items_of: Mapping[tuple[int, ...], list[int]]  # token ids of an identifier -> its items, in ascending order

    @classmethod
    def of(cls, items: Iterable[int], identifiers: Mapping[int, Sequence[int]], device: torch.device) -> ServedItems:
        items_of: dict[tuple[int, ...], list[int]] = {}
        for item in sorted(items):
            items_of.setdefault(tuple(identifiers[item]), []).append(item)
        return cls(Trie(torch.tensor(list(items_of))).to(device), items_of)


class Recommender:
    """A target, its catalogue and perhaps a draft, ready to recommend.

    >>> from atspeed import Recommender                                              # doctest: +SKIP
    >>> recommender = Recommender.from_pretrained("output/toy/target")               # doctest: +SKIP
    >>> recommender.recommend([[12, 7, 99], [3]], k=20)[0].items                     # doctest: +SKIP
    """

    def __init__(
        self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue,
        draft: PreTrainedModel | None = None, *, cutoff: int = 512, template: PromptTemplate = LC_REC,
        max_history: int = 20, batch_size: int = 32,
        draft_width: int | None = None, gamma: int = GAMMA, raw_ids: Mapping[str, int] | None = None,
        stop: Collection[int] = (),
    ):  # fmt: skip
        """target, draft: on one device, in eval mode. tokenizer: has the catalogue's tokens. cutoff: tokens of prompt
        and identifier. template: of the prompt that the target was trained on. max_history: the last so many items of a
        history are read. batch_size: histories that are decoded at once. draft_width: N; None is twice K. gamma: levels
        drafted a round. raw_ids: raw id -> item number; where there are some, histories hold raw ids, and so do
        lists. stop: items that are not to stand in any list."""
        self.target, self.draft, self.catalogue = target, draft, catalogue
        self.max_history, self.batch_size = max_history, batch_size
        self.served = ServedCatalogue(catalogue, frozenset(catalogue.identifiers.keys() - set(stop)), raw_ids)
        self._encoder = PromptEncoder(tokenizer, catalogue, cutoff, template)
        self._prefix = Prefix(self._encoder.before) if self._encoder.before else None
        self._auto = Auto(draft_width, gamma)
        self._all = ServedItems.of(self.served.items, self._encoder.identifiers, target.device)
        self._allowed: OrderedDict[frozenset[int], ServedItems] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls, target: str | Path, draft: str | Path | None = None, *, raw_ids: str | Path | None = None,
        index: str | Path | None = None, stop_list: str | Path | None = None, dtype: str = "float32",
        device: str | torch.device | None = None, batch_size: int = 32, draft_width: int | None = None,
        gamma: int = GAMMA,
    ) -> Recommender:  # fmt: skip
        """Load what stage 1 and, for a draft, stage 3 have written. raw_ids: a Parquet or CSV file of columns raw_id
        and item, such as the items.parquet of a data set. index: an identifier index whose items are listed in place
        of those of training: some may have joined it, and some may have gone. stop_list: a file of items that stand in
        no list, a number a line. device: None is a GPU if there is one.
        The rest: see the class.

        Raises UserError for a folder that is not there, not finished, or a draft or an index of another catalogue.
        """
        check_dtype(dtype)
        served, setting = ServedCatalogue.open(target, draft, index=index, raw_ids=raw_ids, stop_list=stop_list)
        tokenizer = load_tokenizer(str(target))
        if draft is not None:
            check_same_vocabulary(str(draft), tokenizer, served.catalogue)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        models = [path and load_model(str(path), dtype, device) for path in (target, draft)]
        return cls(
            models[0], tokenizer, served.catalogue, models[1], cutoff=setting.cutoff, template=setting.prompt,
            max_history=setting.max_history, batch_size=batch_size, draft_width=draft_width, gamma=gamma,
            raw_ids=served.raw_ids, stop=served.catalogue.identifiers.keys() - served.items,
        )  # fmt: skip

    def recommend(
        self, histories: Sequence[Sequence[Item]], k: int = 20, *, exclude: Sequence[Collection[Item]] | None = None,
        exclude_seen: bool = False, allow: Sequence[Collection[Item] | None] | None = None,
        on_unknown: str = "error",
    ) -> list[Recommendation]:  # fmt: skip
        """The k best items for each history: those of the target's beam search with k beams over what may be served.

        histories: items, oldest first. exclude: items that are not to stand in a list, one collection a history.
        exclude_seen: nor those of the history itself. allow: for each history the only items that may stand in its
        list, such as those of a shop; None: any. on_unknown: "error" names items that the catalogue lacks, "skip"
        leaves them out.

        Raises UserError, which names the history, for unknown items, for a history without a known one, and for k or
        lists that do not fit.
        """
        requests = self._read(histories, k, exclude, exclude_seen, allow, on_unknown)
        found: list[Recommendation | None] = [None] * len(requests)
        by_allowed: dict[frozenset[int] | None, list[int]] = {}
        for number, request in enumerate(requests):
            by_allowed.setdefault(request.allowed, []).append(number)
        for allowed, numbers in by_allowed.items():
            served = self._served(allowed)
            numbers.sort(key=lambda number: len(requests[number].prompt), reverse=True)  # little padding
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                lists = self._decode(served, [requests[number] for number in batch], k)
                for number, each in zip(batch, lists, strict=True):
                    found[number] = each
        return [each for each in found if each is not None]

    def knows(self, history: Sequence[Item]) -> bool:
        """Whether some item of it is in the catalogue."""
        return any(self.served.number(item) is not None for item in history)

    def tree(self, history: Sequence[Item], k: int, on_unknown: str = "error") -> dict[int, Node]:
        """The token tree of one request, see `request_tree`: the draft's, or without a draft the trie's."""
        (request,) = self._read([history], k, None, False, None, on_unknown)
        settings = Settings(
            width=k, drafter="model" if self.draft else "trie", gamma=min(GAMMA, self.catalogue.levels - 1),
            trie=self._all.trie,
        )  # fmt: skip
        return request_tree(self.target, self.draft, torch.tensor([request.prompt]).to(self.target.device), settings)

    def token(self, token_id: int) -> str:
        """An identifier's token, as the index writes it."""
        return self._tokens[token_id]

    @cached_property
    def _tokens(self) -> dict[int, str]:
        return {
            number: token
            for item, numbers in self._encoder.identifiers.items()
            for number, token in zip(numbers, self.catalogue.identifiers[item], strict=True)
        }

    def report(self) -> str:
        """Who drafts, and why: a Markdown table for each kind of batch."""
        return self._auto.report()

    def _read(
        self, histories: Sequence[Sequence[Item]], k: int, exclude: Sequence[Collection[Item]] | None,
        exclude_seen: bool, allow: Sequence[Collection[Item] | None] | None, on_unknown: str,
    ) -> list[Request]:  # fmt: skip
        self.served.check_k(k)
        if on_unknown not in ("error", "skip"):
            raise UserError(f"on_unknown {on_unknown!r}: choose 'error' or 'skip'")
        for name, given in (("exclude", exclude), ("allow", allow)):
            if given is not None and len(given) != len(histories):
                raise UserError(
                    f"{name}: give one collection for each of the {len(histories)} histories, not {len(given)}"
                )
        read: dict[int, frozenset[int] | None] = {}  # an allow-list that many histories share is read once
        for number, each in enumerate(allow or ()):
            if id(each) not in read:
                read[id(each)] = None if each is None else self._allowed_items(number, each, on_unknown)
        return [
            self._request(number, history, exclude[number] if exclude else (), exclude_seen,
                          read[id(allow[number])] if allow else None, on_unknown)
            for number, history in enumerate(histories)
        ]  # fmt: skip

    def _request(
        self, number: int, history: Sequence[Item], exclude: Collection[Item], exclude_seen: bool,
        allowed: frozenset[int] | None, on_unknown: str,
    ) -> Request:  # fmt: skip
        where = f"history {number}"
        items = self.served.read(where, history, on_unknown)
        if not items:
            raise UserError(f"{where}: holds no item of the catalogue")
        excluded = set(self.served.read(where, exclude, on_unknown)) | (set(items) if exclude_seen else set())
        return Request(self._encoder.encode(items[-self.max_history :]), excluded, allowed)

    def _allowed_items(self, number: int, allow: Collection[Item], on_unknown: str) -> frozenset[int]:
        allowed = self.served.items.intersection(self.served.read(f"history {number}", allow, on_unknown))
        if not allowed:
            raise UserError(f"history {number}: its allow-list holds no item that there is to recommend")
        return allowed

    def _served(self, allowed: frozenset[int] | None) -> ServedItems:
        if allowed is None:
            return self._all
        served = self._allowed.pop(allowed, None)
        if served is None:
            served = ServedItems.of(allowed, self._encoder.identifiers, self.target.device)
        self._allowed[allowed] = served
        while len(self._allowed) > SERVED:
            self._allowed.popitem(last=False)
        return served

    def _decode(self, served: ServedItems, requests: Sequence[Request], k: int) -> list[Recommendation]:
        ids, mask = (tensor.to(self.target.device) for tensor in left_pad([request.prompt for request in requests]))
        result = self._auto.beam_search(
            self.target, ids, mask, draft=self.draft, prefix=self._prefix, trie=served.trie, width=k,
            blocked=self._blocked(served, requests),
        )  # fmt: skip
        calls, accepted = result.target_calls.tolist(), result.accepted.clamp(min=0).sum(-1).tolist()
        lists = zip(requests, result.sequences.tolist(), result.scores.tolist(), result.found.tolist(), strict=True)
        ranked = [self._ranked(served, request, paths[:n], scores) for request, paths, scores, n in lists]
        return [
            Recommendation(self.served.names(items), scores, *cost)
            for (items, scores), *cost in zip(ranked, calls, accepted, strict=True)
        ]

    def _blocked(self, served: ServedItems, requests: Sequence[Request]) -> Tensor | None:
        """What no request may be given, of the identifiers all of whose items it excludes."""
        sequences, rows = [], []
        for row, request in enumerate(requests):
            paths = {tuple(self._encoder.identifiers[item]) for item in request.excluded}
            for path in sorted(paths & served.items_of.keys()):
                if request.excluded.issuperset(served.items_of[path]):
                    sequences.append(path)
                    rows.append(row)
        if not sequences:
            return None
        return served.trie.blocked(torch.tensor(sequences), torch.tensor(rows), len(requests))

    def _ranked(
        self, served: ServedItems, request: Request, paths: Sequence[Sequence[int]], scores: Sequence[float]
    ) -> tuple[list[int], list[float]]:
        """Items that share an identifier stand in ascending order, each with its score; at most k of all."""
        ranked = [
            (item, score)
            for path, score in zip(paths, scores, strict=False)
            for item in served.items_of[tuple(path)] if item not in request.excluded
        ][: len(scores)]  # fmt: skip
        return [item for item, _ in ranked], [score for _, score in ranked]


@dataclass(frozen=True)
class Request:
    """One history, read."""

    prompt: list[int]
    excluded: set[int]
    allowed: frozenset[int] | None
