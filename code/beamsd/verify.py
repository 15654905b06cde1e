"""Strict top-K verification (AtSpeed, Algorithm 1): lossless, batched, without a look from the host."""

from dataclasses import replace

import torch
from torch import Tensor

from beamsd.beams import Beams
from beamsd.reader import Reading
from beamsd.tree import Tree
from beamsd.trie import Trie


def verify_strict(reading: Reading, tree: Tree, levels: list[Tensor], beams: Beams, trie: Trie) -> tuple[Beams, Tensor]:
    """Walk the target's own beam search down the drafted levels until it leaves them.

    A level is accepted only if it holds *all* of the target's beams, so the outcome is exactly that of beam search
    without a draft; the level after the last accepted one comes for free. Rows stop independently.

    reading: the target's, of the nodes where the last round ended and all drafted ones.
    levels: the drafted nodes' slots, (B, N) each. beams: where the last round ended.
    Returns the beams, whose nodes are the tree's newest, and how many levels each row accepted (B,): one less than it
    gained.
    """
    unfinished = going = beams.depths < trie.length  # (B,)
    tokens = tree.tokens.gather(1, beams.nodes)
    accepted = torch.zeros_like(beams.depths)
    for level in [*levels, None]:
        ahead, ahead_tokens = beams.step(reading, trie, beams.nodes.shape[1])
        beams = ahead.where(going, beams)
        tokens = torch.where(going[:, None], ahead_tokens, tokens)
        if level is None:
            break
        drafted, found = _find(tree, level, beams.nodes, tokens)
        # Where the catalogue has fewer legal prefixes than K, the beams beyond them need no draft.
        going = going & (drafted | beams.scores.isneginf()).all(-1) & (beams.depths < trie.length)
        accepted += going
        beams = replace(beams, nodes=torch.where(going[:, None], found, beams.nodes))
    # A finished row hangs its last tokens once more, so that every row's beams are the tree's newest nodes.
    parents = torch.where(unfinished[:, None], beams.nodes, tree.parents.gather(1, beams.nodes))
    return replace(beams, nodes=tree.grow(parents, tokens)), accepted


def _find(tree: Tree, level: Tensor, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Which (parent, token) pairs (B, K) are drafted in `level` (B, N), and in which slot (any, where they are not)."""
    hit = (tree.parents.gather(1, level)[:, None] == parents[..., None]) & (
        tree.tokens.gather(1, level)[:, None] == tokens[..., None]
    )  # (B, K, N)
    return hit.any(-1), level.gather(1, hit.int().argmax(-1))
