"""What selects a draft is what strict speculative decoding would report of it."""

import pytest
import torch

from atspeed.training.schedule import check_selection
from atspeed.training.selection import Selection
from beamsd import beam_search
from conftest import LENGTH, noisy_copy
from genrec.runtime.errors import UserError


@pytest.mark.parametrize("noise", [0.0, 0.2, 3.0])
def test_equals_decoding_prompt_by_prompt_and_shares_add_up(taught, noise):
    target, trie, samples = taught
    draft, prompts = noisy_copy(target, noise).train(), samples.prompts[:15]
    selection = Selection(target, trie, prompts, width=4)
    accepted, calls = 0.0, 0
    for prompt in prompts:
        result = beam_search(
            target, torch.tensor([prompt]), trie=trie, width=4, draft=draft.eval(), draft_width=8, gamma=3
        )
        plain = beam_search(target, torch.tensor([prompt]), trie=trie, width=4)
        assert torch.equal(result.sequences, plain.sequences)
        levels = [level for level in result.accepted[0].tolist() if level >= 0]
        accepted += sum(levels) / len(levels)
        calls += len(levels)
        assert sum(levels) + len(levels) == LENGTH, "each call gives a level for free"
    draft.train()
    whole = selection.measure(draft, batch_size=4)
    assert draft.training
    assert whole.tolist() == pytest.approx([accepted, calls, len(prompts)])
    shares = sum(selection.measure(draft, batch_size=4, rank=rank, world=2) for rank in range(2))
    torch.testing.assert_close(shares, whole)


@pytest.mark.parametrize(
    ("by", "users", "message"),
    [
        ("recall", 10, "--select_by recall: choose from accepted, eval_loss"),
        ("accepted", 0, "--select_users 0 decodes nothing"),
    ],
)
def test_what_cannot_select_is_refused(by, users, message):
    check_selection("eval_loss", 0)
    with pytest.raises(UserError, match=message):
        check_selection(by, users)
