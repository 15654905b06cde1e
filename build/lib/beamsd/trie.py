"""The legal sequences, as a trie in CSR arrays that live on the device.

States are numbered breadth-first with the children of a state in a row and sorted by token, so a trie is two arrays:
the children of state s are the states `first_child[s]` up to `first_child[s + 1]`, each reached by its `tokens` entry.
Memory grows with the number of prefixes, not with states x vocabulary, and no mask as wide as the vocabulary is built.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PAST_END = -1  # fills the columns after the end of a shorter sequence
FORMAT = "beamsd trie 1"


class Trie:
    """A trie over token sequences. `Trie(items)` takes sequences of one length, `Trie.from_sequences` of any.

    State 0 is the root, `end` the state after the EOS token that ends a sequence (see `ended_by`), `dead` the state of
    what is not legal.

    >>> trie = Trie(torch.tensor([[5, 7], [5, 8], [6, 7]]))
    >>> trie.children(torch.tensor([0, 1]))   # of the root, and of the state after token 5
    tensor([[1, 2],
            [3, 4]])
    >>> trie.tokens[trie.children(torch.tensor([0, 1]))]
    tensor([[5, 6],
            [7, 8]])
    >>> trie.advance(torch.tensor([1, 1]), torch.tensor([8, 9])), trie.dead
    (tensor([4, 7]), 7)
    """

    tokens: Tensor  # (n_states + 2,) long, the token that leads to a state; unused (0) for the root and `dead`
    first_child: Tensor  # (n_states + 3,) long
    final: Tensor  # (n_states + 2,) bool: a sequence ends here, and may go on where another is longer
    length: int  # L, tokens in the longest sequence
    fanout: int  # the largest number of children
    vocabulary_size: int  # the smallest vocabulary that holds every token
    shortest: int  # tokens in the shortest
    eos: int | None  # the token that ends a sequence, if there is to be one

    def __init__(self, items: Tensor):
        """items: (n_items, L) token ids, duplicates allowed.

        Raises ValueError if `items` is empty, not two-dimensional, or holds a negative token.
        """
        items = torch.as_tensor(items)
        if items.dim() != 2 or items.numel() == 0 or items.is_floating_point():
            raise ValueError(
                f"a trie needs integer token ids of shape (n_items, length), not {items.dtype} {tuple(items.shape)}"
            )
        if items.min() < 0:
            raise ValueError(f"a trie needs token ids >= 0, not {items.min().item()}")
        self._build(items)

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]]) -> Trie:
        """Build from token sequences of any lengths, as a tokenizer gives them, duplicates allowed.

        A sequence that is the beginning of another is legal too: the search ends it with the EOS token.
        Raises ValueError if there is none, or if one is empty or holds a negative token.
        """
        rows = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
        if not rows or any(row.dim() != 1 or not len(row) for row in rows):
            raise ValueError("a trie needs at least one sequence, and none of them empty")
        if (smallest := min(int(row.min()) for row in rows)) < 0:
            raise ValueError(f"a trie needs token ids >= 0, not {smallest}")
        trie = cls.__new__(cls)
        trie._build(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAST_END))
        return trie

    def _build(self, items: Tensor) -> None:
        # One pass a level: the key (state of the prefix, token) sorts a level breadth-first and by token.
        base = int(items.max()) + 1
        states = torch.zeros(len(items), dtype=torch.long, device=items.device)  # where every sequence stands
        tokens, parents, n_states = [states[:1].clone()], [], 1
        for column in items.T:
            goes_on = column != PAST_END
            keys, inverse = (states[goes_on] * base + column[goes_on]).unique(return_inverse=True)
            tokens.append(keys % base)
            parents.append(keys // base)
            states[goes_on] = n_states + inverse
            n_states += len(keys)
        unused = torch.zeros_like(tokens[0])
        children = torch.cat(parents).bincount(minlength=n_states + 2)  # and none for `end` and `dead`
        final = torch.zeros(n_states + 2, dtype=torch.bool, device=items.device)
        final[states] = True
        self._set(
            torch.cat([*tokens, unused, unused]), torch.cat([unused + 1, 1 + children.cumsum(0)]), final,
            length=items.shape[1], shortest=int((items != PAST_END).sum(-1).min()),
        )  # fmt: skip

    def _set(self, tokens: Tensor, first_child: Tensor, final: Tensor, length: int, shortest: int) -> None:
        self.tokens, self.first_child, self.final = tokens, first_child, final
        self.length, self.shortest = length, shortest
        self.fanout = int(first_child.diff().max())
        self.vocabulary_size = int(tokens.max()) + 1
        self.eos = None
        self._held: dict[int, bool] = {}
        self._keys: Tensor | None = None
        self._views: dict[torch.device | int, Trie] = {}

    @property
    def end(self) -> int:
        """The state after EOS: it has no children."""
        return len(self.tokens) - 2

    @property
    def dead(self) -> int:
        """The state of an illegal prefix: it has no children, and it is the largest state."""
        return len(self.tokens) - 1

    def to(self, device: torch.device | str) -> Trie:
        """This trie on `device`: itself if it is there, else a copy, made once."""
        device = torch.device(device)
        if device == self.tokens.device:
            return self
        if device not in self._views:
            tokens, first_child, final = (array.to(device) for array in (self.tokens, self.first_child, self.final))
            self._views[device] = self._like(tokens, first_child, final, self.eos)
        return self._views[device]

    def ended_by(self, eos: int) -> Trie:
        """This trie with `eos` as a further child of every state where a sequence ends; made once an `eos`."""
        if eos not in self._views:
            tokens, final = self.tokens.clone(), self.final.clone()
            has_eos = 1 + (tokens[1 : self.end] == eos).nonzero()[:, 0]  # sequences that hold it need no second one
            final[torch.searchsorted(self.first_child, has_eos, right=True) - 1] = False
            final[has_eos] = False
            tokens[self.end] = eos
            self._views[eos] = self._like(tokens, self.first_child, final, eos)
        return self._views[eos]

    def holds(self, token: int) -> bool:
        """Whether some sequence holds `token`. Reads the device, once a token."""
        if token not in self._held:
            self._held[token] = bool((self.tokens[1 : self.end] == token).any())
        return self._held[token]

    def _like(self, tokens: Tensor, first_child: Tensor, final: Tensor, eos: int | None) -> Trie:
        view = copy(self)
        view.tokens, view.first_child, view.final, view.eos = tokens, first_child, final, eos
        view._views, view._keys = {}, None
        return view

    def children(self, states: Tensor, slots: int = 0) -> Tensor:
        """The children (..., C) of `states` (...): in order of their tokens, padded with `dead`, `end` last.

        C is the trie's fan-out, or `slots` if that is more, and one for `end` where sequences are ended by EOS: the
        shape never depends on the states.
        """
        first = self.first_child[states][..., None]
        count = self.first_child[states + 1][..., None] - first
        slot = torch.arange(max(self.fanout, slots), device=states.device)
        children = torch.where(slot < count, first + slot, self.dead)
        if self.eos is None:
            return children
        return torch.cat([children, torch.where(self.final[states], self.end, self.dead)[..., None]], -1)

    def below(self, states: Tensor, levels: int) -> Tensor:
        """How many prefixes (levels, ...) lie one, two, … levels below `states` (...), ends by EOS not counted."""
        first, last, counts = states, states + 1, []
        for _ in range(levels):  # the children of a run of states are a run
            first, last = self.first_child[first], self.first_child[last]
            counts.append(last - first)
        return torch.stack(counts) if counts else states.new_zeros(0, *states.shape)

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states (...) after one more token (...) each; `dead` where it is not legal."""
        keys, base = self._sorted_keys(), self.vocabulary_size
        key = states * base + tokens
        place = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        legal = (keys[place] == key) & (tokens >= 0) & (tokens < base)
        after = torch.where(legal, place + 1, self.dead)
        if self.eos is None:
            return after
        return torch.where(self.final[states] & (tokens == self.eos) & ~legal, self.end, after)

    def _sorted_keys(self) -> Tensor:
        """(n_states - 1,) long, ascending: of each state but the root, its parent times the vocabulary size, plus its
        token. Made at first use."""
        if self._keys is None:
            n_children = self.first_child.diff()[: self.end]
            parents = torch.arange(self.end, device=n_children.device).repeat_interleave(n_children)
            self._keys = parents * self.vocabulary_size + self.tokens[1 : self.end]
        return self._keys

    def walk(self, sequences: Tensor) -> Tensor:
        """The states (..., l + 1) along `sequences` (..., l): root first, one after every token."""
        states = [sequences.new_zeros(sequences.shape[:-1])]
        for column in sequences.unbind(-1):
            states.append(self.advance(states[-1], column))
        return torch.stack(states, -1)

    def blocked(self, sequences: Tensor, rows: Tensor, n_rows: int) -> Tensor:
        """The states (n_rows, n_states) that a request may not enter, so that it cannot be given some sequences.

        sequences: (n, L) long, whole ones; what the trie does not hold counts for nothing. rows: (n,) long, whose they
        are, of requests 0 … n_rows - 1. A prefix is blocked with the last of its continuations. Pass the result to
        `beam_search` as `blocked`; what is found is then what a trie without these sequences gives.
        Raises ValueError if sequences differ in length, since one may begin another.

        >>> trie = Trie(torch.tensor([[5, 7], [5, 8], [6, 7]]))   # states 1 (5), 2 (6), 3 (5 7), 4 (5 8), 5 (6 7)
        >>> trie.blocked(torch.tensor([[5, 8], [6, 7]]), torch.tensor([0, 1]), 2).nonzero().tolist()
        [[0, 4], [1, 2], [1, 5]]
        """
        if self.shortest < self.length:
            raise ValueError("blocked takes a trie whose sequences have one length")
        n_states = self.dead + 1
        blocked = torch.zeros(n_rows * n_states, dtype=torch.bool, device=self.tokens.device)
        states = self.walk(sequences.to(blocked.device))[:, -1]
        cells = (rows.to(blocked.device) * n_states + states)[states != self.dead].unique()
        parents, n_children = self._sorted_keys() // self.vocabulary_size, self.first_child.diff()
        while len(cells):
            blocked[cells] = True
            states = cells % n_states
            above = (cells - states + parents[states - 1])[states > 0]
            cells, counts = above.unique(return_counts=True)
            cells = cells[counts == n_children[cells % n_states]]
        return blocked.view(n_rows, n_states)

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        arrays = {"tokens": self.tokens, "first_child": self.first_child, "final": self.final}
        try:
            facts = {"format": FORMAT, "length": str(self.length), "shortest": str(self.shortest)}
            save_file({name: array.cpu().contiguous() for name, array in arrays.items()}, partial, facts)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Trie:
        """Read what `save` wrote, on the CPU. Raises ValueError for any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        if facts.get("format") != FORMAT or set(arrays) != {"tokens", "first_child", "final"}:
            raise ValueError(f"{path} is not a trie of this library (it should say {FORMAT!r}); build it anew")
        trie = cls.__new__(cls)
        trie._set(**arrays, length=int(facts["length"]), shortest=int(facts["shortest"]))
        return trie


def check_trie(trie: object) -> None:
    """Raises ValueError for what is neither a `Trie` nor None, such as the lists that one is made of."""
    if trie is not None and not isinstance(trie, Trie):
        raise ValueError(
            f"trie must be a Trie, not a {type(trie).__name__}: pass Trie.from_sequences(...) of lists of tokens, "
            "Trie(...) of a tensor (n_items, length)"
        )
