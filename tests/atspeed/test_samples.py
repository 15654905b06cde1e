"""The order of training, and the loss on the items of a history."""

import pytest
import torch

from atspeed.data.samples import ByLength, HistoryLoss, Samples, collate
from atspeed.training.alignment import Alignment, with_history
from atspeed.training.objectives import make_objective
from atspeed.tree_logits import tree_logits
from conftest import tiny_llama


@pytest.mark.parametrize(("n", "batch"), [(640, 8), (45, 16), (3, 8)])
def test_an_epoch_holds_every_sample_in_whole_batches_of_similar_length(n, batch):
    lengths = torch.randint(5, 100, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    sampler = ByLength(lengths, batch, seed=3)
    order = list(sampler)
    assert len(order) == len(sampler) == -(-n // batch) * batch
    assert set(order) == set(range(n))
    assert order == list(ByLength(lengths, batch, seed=3)), "the same on every process"
    sampler.set_epoch(1)
    assert list(sampler) != order
    if n == 640:
        padded = sum(batch * max(lengths[i] for i in order[b : b + batch]) for b in range(0, n, batch))
        assert padded < 1.05 * sum(lengths)
        firsts = [lengths[order[b]] for b in range(0, n, batch)]
        assert firsts != sorted(firsts), "batches come in random order"


def test_the_history_is_learnt_as_one_sample_for_every_prefix_would_teach_it():
    """Items are pairs of tokens from 30 on; what stands between them is not learnt, and the first item is not."""
    prompts = [[1, 30, 31, 5, 32, 33, 5, 34, 35, 2], [1, 36, 37, 2], [1, 30, 33, 5, 31, 32, 2]]
    responses = torch.tensor([[38, 39, 2], [30, 31, 2], [34, 37, 2]])
    history = HistoryLoss.of(prompts, range(30, 40), levels=2)
    assert history.response == pytest.approx(3 / (3 + 3))  # three responses, three items of histories
    model, batch = tiny_llama(1, 2), collate(
        [Samples(prompts, responses, history=history)[i] for i in range(3)]
    )  # fmt: skip
    assert batch["history_weights"].shape == batch["input_ids"].shape
    with torch.no_grad():
        tree = tree_logits(model, batch["input_ids"], batch["attention_mask"], batch["item"], prompt=True)
        alignment = Alignment(make_objective("SFTModel"))
        got = with_history(alignment.losses(tree, batch["item"], None), tree, batch)
        expected = []
        for prompt, response in zip(prompts, responses.tolist(), strict=True):
            log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            tokens = prompt + response
            learnt = [i for i, token in enumerate(prompt) if token >= 30][2:] + list(range(len(prompt), len(tokens)))
            expected.append(sum(-log_probs[i - 1, tokens[i]].item() for i in learnt) / 3 * history.response)
    torch.testing.assert_close(got.total, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    without = alignment.losses(tree, batch["item"], None)
    torch.testing.assert_close(got.recommend, without.total)
