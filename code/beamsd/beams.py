"""One step of beam search, for any set of beams on any tree: what draft, target and baseline have in common."""

from dataclasses import dataclass

import torch
from torch import Tensor

from beamsd.reader import Reading
from beamsd.tree import Tree
from beamsd.trie import Trie


@dataclass
class Beams:
    """The K best prefixes of every request, best first; a score of -inf marks a beam that is not legal."""

    scores: Tensor  # (B, K) float32, cumulative log-probability
    nodes: Tensor  # (B, K) long, tree slot of the last token
    states: Tensor  # (B, K) long, trie state after the last token
    depths: Tensor  # (B,)   long, tokens generated so far

    @classmethod
    def at_root(cls, tree: Tree, width: int) -> "Beams":
        """`width` copies of the prompt's last node, of which only the first can win: one shape for every round."""
        B, device = tree.tokens.shape[0], tree.tokens.device
        scores = torch.full((B, width), -torch.inf, device=device)
        scores[:, 0] = 0
        return cls(
            scores,
            nodes=torch.full((B, width), tree.size - 1, device=device),
            states=torch.zeros(B, width, dtype=torch.long, device=device),
            depths=torch.zeros(B, dtype=torch.long, device=device),
        )

    def step(self, reading: Reading, trie: Trie, width: int) -> tuple["Beams", Tensor]:
        """The `width` best legal continuations and their tokens (B, width). `nodes` still name the parents.

        reading: of nodes that include all of `self.nodes`.
        """
        K, V = self.nodes.shape[1], reading.log_probs.shape[-1]
        children = trie.children(self.states, slots=-(-width // K))  # (B, K, C); K * C >= width
        cell = (self.nodes - reading.since)[..., None] * V + trie.tokens[children]
        gained = reading.log_probs.flatten(1).gather(1, cell.flatten(1)).view_as(children)
        scores = (self.scores[..., None] + gained).masked_fill(children == trie.dead, -torch.inf)
        scores, best = scores.flatten(1).topk(width)
        states = children.flatten(1).gather(1, best)
        parents = self.nodes.gather(1, best // children.shape[-1])
        return Beams(scores, parents, states, self.depths + 1), trie.tokens[states]

    def where(self, rows: Tensor, other: "Beams") -> "Beams":
        """`self` in the rows (B,) that are true, `other` elsewhere."""
        pick = rows[:, None]
        return Beams(
            torch.where(pick, self.scores, other.scores),
            torch.where(pick, self.nodes, other.nodes),
            torch.where(pick, self.states, other.states),
            torch.where(rows, self.depths, other.depths),
        )
