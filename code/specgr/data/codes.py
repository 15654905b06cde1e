"""Items as sequences of codes: l - 1 semantic levels and an identification digit that tells apart what shares them."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from genrec.data.catalogue import Catalogue
from genrec.identifiers.quantise import identification_digits
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path

PAD = 0  # fills up histories, and starts the decoder as in T5
NOTHING = -1  # no item: the rest of a shorter history, or of a shorter list


@dataclass(frozen=True)
class Codes:
    """The identifiers of items 0 … n_items - 1. A code is a number within its level, a token one of the vocabulary.

    Raises ValueError if shapes or types are wrong, a code is outside its level, or two items share an identifier.
    """

    codes: Tensor  # (n_items, l) long, 0-based within a level; the last level is the identification digit
    sizes: tuple[int, ...]  # (l,), codes that a level may have
    bos_eos: bool = False  # a BOS token stands before what the encoder reads, and an EOS token after it

    def __post_init__(self) -> None:
        codes, sizes = self.codes, torch.tensor(self.sizes)
        if codes.dim() != 2 or codes.numel() == 0 or codes.dtype != torch.long or codes.shape[1] != len(sizes):
            raise ValueError(
                f"codes are long (n_items, {len(sizes)}), one column for each of the sizes {self.sizes}, not "
                f"{codes.dtype} {tuple(codes.shape)}"
            )
        outside = (codes < 0) | (codes >= sizes.to(codes.device))
        if outside.any():
            item, level = outside.nonzero()[0].tolist()
            raise ValueError(
                f"item {item}: code {codes[item, level].item()} at level {level} is not among its {self.sizes[level]} "
                "codes"
            )
        _, first, count = codes.unique(dim=0, return_inverse=True, return_counts=True)
        if (count > 1).any():
            same = (first == int(count.argmax())).nonzero()[:2, 0].tolist()
            raise ValueError(f"items {same[0]} and {same[1]} share the identifier {codes[same[0]].tolist()}")

    @classmethod
    def from_semantic(
        cls, semantic: Tensor, sizes: tuple[int, ...], digits: int = 256, bos_eos: bool = False
    ) -> "Codes":
        """Append the identification digit: items that share their semantic codes are numbered in order of the items.

        semantic: (n_items, l - 1) long. sizes: of these levels. digits: size of the level of the identification digit.
        Raises UserError if more than `digits` items share their semantic codes.
        """
        digit = identification_digits(semantic)
        if digit.max() >= digits:
            shared = semantic[digit.argmax()].tolist()
            raise UserError(
                f"{int(digit.max()) + 1} items share the semantic codes {shared}, but the identification digit tells "
                f"apart {digits}; raise its size, or fit the tokenizer with more codes"
            )
        return cls(torch.cat([semantic, digit[:, None]], -1), (*sizes, digits), bos_eos)

    @classmethod
    def from_catalogue(cls, catalogue: Catalogue, digits: int = 256, bos_eos: bool = False) -> "Codes":
        """The codes of a data set in the AtSpeed layout. Its last level, there to tell items apart, is numbered anew,
        since the index may give several items one identifier.

        digits: see `from_semantic`.
        Raises UserError if the items are not numbered 0, 1, 2, …, identifiers have one token alone, or digits overflow.
        """
        items = sorted(catalogue.identifiers)
        if items != list(range(len(items))):
            absent = next(number for number, item in enumerate(items) if number != item)
            raise UserError(f"the identifier index lacks item {absent}; its {len(items)} items must be 0, 1, 2, …")
        if catalogue.levels < 2:
            raise UserError("the identifiers have one token an item; SpecGR needs a semantic token and a last digit")
        kept = range(catalogue.levels - 1)
        levels = [{catalogue.identifiers[item][level] for item in items} for level in kept]
        code_of = [
            {token: code for code, token in enumerate(t for t in catalogue.tokens if t in level)} for level in levels
        ]
        semantic = torch.tensor([[code_of[level][catalogue.identifiers[i][level]] for level in kept] for i in items])
        return cls.from_semantic(semantic, tuple(map(len, levels)), digits, bos_eos)

    @property
    def levels(self) -> int:
        """l, the tokens of an identifier."""
        return len(self.sizes)

    @property
    def vocabulary_size(self) -> int:
        """PAD, all tokens of identifiers, and BOS and EOS where there are any, which come last."""
        return 1 + sum(self.sizes) + 2 * self.bos_eos

    @cached_property
    def tokens(self) -> Tensor:
        """The identifiers (n_items, l) in tokens: level after level, from 1 on."""
        offsets = [1, *accumulate(self.sizes[:-1], initial=1)][1:]
        return self.codes + torch.tensor(offsets, device=self.codes.device)

    def history(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads. items: (B, T) long, oldest first, NOTHING where there is none (at either end).

        Returns input_ids and attention_mask, both (B, T * l) long; with `bos_eos` (B, T * l + 2).
        """
        real = (items != NOTHING)[..., None].expand(-1, -1, self.levels)
        tokens = self.tokens[items.clamp(min=0)].where(real, PAD).flatten(1)
        mask = real.flatten(1).long()
        if not self.bos_eos:
            return tokens, mask
        first = mask.argmax(1, keepdim=True)  # of what there is, before BOS moves it by one
        ends = torch.cat([first, first + mask.sum(1, keepdim=True) + 1], 1)
        frame = torch.arange(self.vocabulary_size - 2, self.vocabulary_size, device=ends.device).expand_as(ends)
        return pad(tokens, (1, 1), value=PAD).scatter(1, ends, frame), pad(mask, (1, 1)).scatter(1, ends, 1)

    def to(self, device: torch.device | str) -> "Codes":
        return replace(self, codes=self.codes.to(device))

    def save(self, path: Path) -> None:
        """Write a .safetensors file, whole or not at all."""
        with atomic_path(path) as partial:
            save_file({"codes": self.codes.cpu().contiguous(), "sizes": torch.tensor(self.sizes)}, partial)

    @classmethod
    def load(cls, path: Path) -> "Codes":
        """Read what `save` wrote. Raises UserError if it is missing or something else."""
        try:
            arrays = load_file(path)
            return cls(arrays["codes"], tuple(arrays["sizes"].tolist()))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path}: not the codes of a tokenizer ({error}); make them again") from error
