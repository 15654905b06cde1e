import pytest
import torch

from genrec.runtime.errors import UserError
from specgr.data.codes import NOTHING
from specgr.decoding.item_drafters import Drafted, Histories, UniSRecDrafter
from specgr.networks import unisrec
from specgr.networks.unisrec import Adaptor, UniSRec, UniSRecSettings


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UniSRec(UniSRecSettings(6, max_history=4, hidden=8, inner=8, layers=1, heads=2, experts=3)).eval()


@pytest.fixture
def texts():
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_the_adaptor_is_a_gated_sum_of_whitened_projections(texts):
    torch.manual_seed(0)
    adaptor = Adaptor(6, 4, experts=3, dropout=0.0).eval()
    for weight in adaptor.parameters():
        weight.normal_()
    for text, adapted in zip(texts, adaptor(texts), strict=True):
        gate = (text @ adaptor.gate).softmax(-1)
        expected = sum(gate[e] * ((text - adaptor.shift[e]) @ adaptor.project[e]) for e in range(3))
        torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_an_item_depends_on_its_text_alone_and_a_history_not_on_its_padding(model, texts):
    items = torch.tensor([[3, 1, NOTHING, NOTHING], [NOTHING, 3, NOTHING, 1], [3, 1, 3, 1]])
    histories = model.histories(items, texts)
    torch.testing.assert_close(histories[0], histories[1])
    torch.testing.assert_close(histories[0], model.histories(items[:1, :2], texts)[0])
    assert (histories[0] - histories[2]).abs().max() > 1e-3
    torch.testing.assert_close(histories.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(model.items(texts)[[4]], model.items(texts[[4]]))


def test_the_drafter_ranks_all_items_by_cosine(model, texts):
    drafter = UniSRecDrafter.of(model, texts, batch_size=3)
    lists = Drafted(Histories(), drafter).recommend(torch.tensor([[2, 5], [7, NOTHING]]), 10)
    assert [sorted(row) for row in lists.items.tolist()] == [list(range(10))] * 2
    assert lists.scores.abs().max() <= 1 + 1e-5


def test_a_unisrec_is_read_as_it_was_written(model, texts, tmp_path):
    model.save(tmp_path / "u")
    torch.testing.assert_close(UniSRec.load(tmp_path / "u").items(texts), model.items(texts), atol=0, rtol=0)
    (tmp_path / "u/model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="not a UniSRec"):
        UniSRec.load(tmp_path / "u")


def test_the_experts_of_a_large_catalogue_are_not_kept_for_the_gradients(monkeypatch):
    """For 1.5 M items they were 14 GB a step."""
    settings, texts = UniSRecSettings(6, 5, hidden=8, inner=8, layers=1, experts=4), torch.randn(100, 6)
    monkeypatch.setattr(unisrec, "BLOCK", 30)

    def step():
        torch.manual_seed(0)
        model, kept = UniSRec(settings).train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            items = model.items(texts)
        items.square().cumsum(0).sum().backward()
        return model.adaptor.project.grad, sum(kept)

    gradient, kept = step()
    monkeypatch.setattr(unisrec, "checkpoint", lambda function, part, use_reentrant: function(part))
    expected, whole = step()
    torch.testing.assert_close(gradient, expected)
    assert kept < whole / 2
