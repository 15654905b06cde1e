import math
from dataclasses import replace

import pytest
import torch

from beamsd.search.beams import Beams
from beamsd.search.constraints import TrieContinuations
from beamsd.search.scoring import likelihood
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.specgr_search import read_drafts
from specgr.decoding.verifier import TigerVerifier, verification_score
from tiny_tiger import random_histories


def test_v_is_the_mean_over_all_tokens_and_for_new_items_over_all_but_the_last():
    semantic, last = torch.tensor([[-1.0 - 2.0, -1.0 - 2.0]]), torch.tensor([[-9.0, -9.0]])
    assert verification_score(semantic, last, torch.tensor([[True, False]]), levels=3).tolist() == [[-4.0, -1.5]]


@torch.inference_mode()
def naive(codes, tiger, history, item, seen):
    """V of one item for one history, token by token with transformers' own decoder."""
    ids, mask = codes.history(history[None])
    prefix, total, tokens = [0], 0.0, codes.tokens[item].tolist()
    counted = tokens if seen else tokens[:-1]
    for token in counted:
        logits = tiger.t5(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
        exps = [math.exp(x) for x in logits.double().tolist()]
        total += math.log(exps[token] / sum(exps))
        prefix.append(token)
    return total / len(counted)


@torch.inference_mode()
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_v_of_a_batch_is_that_of_a_naive_loop_at_every_depth_of_the_beams(codes, tiger, depth):
    histories, verifier, prefixes = (
        random_histories(len(codes.codes), 3),
        TigerVerifier(tiger, codes),
        Prefixes.of(codes),
    )
    seen = torch.rand(len(codes.codes)) < 0.5
    reader, tree = verifier.reader(verifier.encode(histories)), tiger.root(3, 100)
    beams = Beams.at_root(tree, 1, codes.levels, invalid_score=-torch.inf)
    drafted, owner = torch.randint(len(codes.codes), (3, 5)), torch.zeros(3, 5, dtype=torch.long)
    for level in range(depth):  # what is cut off must leave no trace
        following, _ = read_drafts(reader, tree, beams, owner, prefixes.tokens[drafted][..., level:], beams)
        options = prefixes.trie.children(beams.states)
        legal = following.gather(-1, prefixes.trie.tokens[options])
        legal = legal.masked_fill(options == prefixes.trie.dead, -torch.inf)
        beams = beams.step(TrieContinuations(legal, options, prefixes.trie), likelihood, min(6, legal[0].numel()))
        beams = replace(beams, nodes=tree.append(beams.nodes, beams.tokens))
        below = [prefixes.below(beams.states, level + 1)[row].nonzero()[:, 0] for row in range(3)]
        drafted = torch.stack([items[torch.randint(len(items), (5,))] for items in below])
        owner = (prefixes.states[level + 1][drafted][..., None] == beams.states[:, None]).int().argmax(-1)
    _, log_probs = read_drafts(reader, tree, beams, owner, prefixes.tokens[drafted][..., depth:], beams)
    semantic = beams.log_probs.gather(1, owner) + log_probs[..., :-1].sum(-1)
    values = verification_score(semantic, log_probs[..., -1], seen[drafted], codes.levels)
    expected = [[naive(codes, tiger, histories[b], i, seen[i]) for i in drafted[b]] for b in range(3)]
    torch.testing.assert_close(values, torch.tensor(expected), atol=1e-4, rtol=1e-4)
