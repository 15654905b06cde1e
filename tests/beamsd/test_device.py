"""The decoder on a device: the CPU's lists, nothing on the wrong device, and no host sync but those written down."""

import pytest
import torch

from beamsd import Prefix, Trie, beam_search
from conftest import noisy_copy, random_items, random_prompts, tiny_llama
from fake_cuda import CUDA, move

# Where the host waits in every request after the first, which also finds out what model and trie are.
PROMPTS = "settings.py:_read_prompts"  # are they left-padded, how long is the longest, what is the largest token?
ROUNDS = "beam_search.py:_play"  # one a round, and one before the first: how many levels are left?
SHARED = [3, 1]  # how all prompts begin
MODEL = {"gamma": 3, "draft_width": 8}
SEEDED = {"seeds": [1, 2, 3]}
FREE = {"trie": None, "max_new_tokens": 5}
# Settings, and the syncs and copies to the device that only these need.
CASES = {
    "none": ({"drafter": "none"}, {}, {}),
    "model": (MODEL, {}, {}),
    "trie": ({"drafter": "trie"}, {}, {}),
    "hybrid": ({"drafter": "hybrid", "draft_width": 12}, {}, {}),
    "relaxed": (MODEL | SEEDED | {"verification": "relaxed"}, {}, {"settings.py:_seeds": 1}),
    "sample": ({"drafter": "trie", "verification": "sample"} | SEEDED, {}, {"settings.py:_seeds": 1}),
    "an end": (MODEL | {"eos_token_id": 2, "max_new_tokens": 5}, {}, {}),
    "free text with an end": (MODEL | FREE | {"eos_token_id": 2}, {}, {}),
    # Dead nodes are dropped after 16 rounds: how many are there?
    "long text": ({"drafter": "none", "trie": None, "max_new_tokens": 17}, {"state.py:compacted": 1}, {}),
    # Do all prompts begin with it?
    "prefix": (MODEL | {"prefix": Prefix(SHARED)}, {"prefix.py:in_front": 1}, {"prefix.py:in_front": 1}),
    "one request": (MODEL | {"batch": 1}, {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_decoder_waits_once_a_round_and_mixes_no_devices(device, case):
    settings, syncs, copies = CASES[case]
    settings = {"trie": Trie(random_items(60)), "width": 4} | settings
    ids, mask = random_prompts(settings.pop("batch", 3), 9)
    for row, start in zip(ids, mask.argmax(1).tolist(), strict=True):
        row[start : start + len(SHARED)] = torch.tensor(SHARED)
    target = tiny_llama(1, 2)
    draft = noisy_copy(target, 0.2)
    expected = beam_search(target, ids, mask, draft=draft, **settings)
    target, draft, ids, mask = move(target), move(draft), ids.to(CUDA), mask.to(CUDA)
    for _ in range(2):  # what is found out once a model and trie is not counted
        device.forget()
        found = beam_search(target, ids, mask, draft=draft, **settings)
    assert found.sequences.device == CUDA
    assert torch.equal(found.sequences.cpu(), expected.sequences)
    assert torch.equal(found.accepted.cpu(), expected.accepted)
    assert device.syncs == {PROMPTS: 1, ROUNDS: expected.accepted.shape[1] + 1} | syncs
    assert device.copies == copies
