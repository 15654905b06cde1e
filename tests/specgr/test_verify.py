import math

import pytest
import torch

from specgr.decoding.prefixes import Prefixes, TigerBeams
from specgr.decoding.verifier import TigerVerifier, verification_score
from tiny_tiger import random_histories


def test_v_is_the_mean_over_all_tokens_and_for_new_items_over_all_but_the_last():
    log_probs = torch.tensor([[[-1.0, -2.0, -9.0], [-1.0, -2.0, -9.0]]])
    assert verification_score(log_probs, torch.tensor([[True, False]])).tolist() == [[-4.0, -1.5]]


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
    decoder, beams = verifier.decoder(verifier.encode(histories)), TigerBeams.start(3, torch.device("cpu"))
    drafted, owner = torch.randint(len(codes.codes), (3, 5)), torch.zeros(3, 5, dtype=torch.long)
    for level in range(depth):
        rest = prefixes.tokens[drafted][..., level:]
        following, _, beams = decoder.read(beams, owner, rest)  # what is cut off must leave no trace
        beams = beams.advance(following, 6, prefixes, constrained=True)
        below = [(prefixes.below(beams.states, level + 1)[row] == 0).nonzero()[:, 0] for row in range(3)]
        drafted = torch.stack([items[torch.randint(len(items), (5,))] for items in below])
        owner = (prefixes.states[level + 1][drafted][..., None] == beams.states[:, None]).int().argmax(-1)
    _, log_probs, _ = decoder.read(beams, owner, prefixes.tokens[drafted][..., depth:])
    row = torch.arange(3)[:, None]
    values = verification_score(torch.cat([beams.log_probs[row, owner], log_probs], -1), seen[drafted])
    expected = [[naive(codes, tiger, histories[b], i, seen[i]) for i in drafted[b]] for b in range(3)]
    torch.testing.assert_close(values, torch.tensor(expected), atol=1e-4, rtol=1e-4)
