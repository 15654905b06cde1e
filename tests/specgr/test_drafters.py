import pytest
import torch
from torch.nn.functional import cosine_similarity, one_hot

from specgr.data.codes import NOTHING, Codes
from specgr.decoding.item_drafters import Drafted, EncoderDrafter, Histories, item_embeddings
from specgr.decoding.neighbours import CodeNeighbourDrafter, NeighbourDrafter
from specgr.decoding.verifier import TigerVerifier
from tiny_tiger import random_histories


@torch.inference_mode()
def test_the_encoder_drafter_compares_history_and_item_as_the_encoder_reads_them(codes, tiger):
    histories, n_items = random_histories(len(codes.codes), 3), len(codes.codes)
    encoded = TigerVerifier(tiger, codes).encode(histories)
    items = item_embeddings(tiger, codes, batch_size=7)
    scores = EncoderDrafter(tiger, items).scores(encoded)
    for row, item in [(0, 0), (1, n_items - 1), (2, 17)]:
        real = histories[row][histories[row] != NOTHING]
        both = [codes.tokens[real].flatten(), codes.tokens[item]]
        mine, its = (tiger.projection(tiger.encode(t[None], torch.ones_like(t[None]))[0].mean(0)) for t in both)
        torch.testing.assert_close(scores[row, item], cosine_similarity(mine, its, dim=0), atol=1e-5, rtol=1e-5)


def test_the_neighbour_drafter_weighs_the_last_item_most(codes, tiger):
    vectors = torch.eye(3).repeat(20, 1)
    encoded = TigerVerifier(tiger, codes).encode(torch.tensor([[1, 0, NOTHING], [NOTHING, 2, 4]]))
    scores = NeighbourDrafter(vectors, decay=0.5).scores(encoded)
    norm = 1.25**0.5
    expected = torch.tensor([[1 / norm, 0.5 / norm, 0.0], [0.0, 1 / norm, 0.5 / norm]])
    torch.testing.assert_close(scores[:, :3].float(), expected)
    torch.testing.assert_close(scores[:, 3:6].float(), expected)
    assert scores.topk(20).indices.tolist() == [list(range(0, 60, 3)), list(range(1, 60, 3))]  # equals by their number
    with pytest.raises(ValueError, match="decay"):
        NeighbourDrafter(vectors, decay=-0.1)


def test_neighbours_of_the_last_item_and_of_the_mean_by_hand(codes):
    """Unit vectors at 0, 90 and 45 degrees, and a new item beside the first; the history is 0 twice, then 1."""
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [1.0, 0.1]])
    encoded = Histories().encode(torch.tensor([[NOTHING, 0, 0, 1]]))
    last, mean = (NeighbourDrafter(vectors, decay).scores(encoded) for decay in (0.0, 1.0))
    near = 1 / 1.01**0.5
    expected = torch.tensor([[0, 1, 0.5**0.5, 0.1 * near]], dtype=torch.float64)
    torch.testing.assert_close(last, expected, atol=1e-6, rtol=0)
    expected = torch.tensor([[2, 1, 3 / 2**0.5, 2.1 * near]], dtype=torch.float64) / 5**0.5
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=0)
    padded = CodeNeighbourDrafter(codes, 0.0).scores(Histories().encode(torch.tensor([[NOTHING, NOTHING], [3, 5]])))
    alone = CodeNeighbourDrafter(codes, 0.8).scores(Histories().encode(torch.tensor([[5]])))
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[1:], alone)


def test_neighbours_by_code_are_those_of_vectors_in_which_each_level_is_one_hot(codes, tiger):
    n_items, sizes = len(codes.codes), codes.sizes[:-1]
    levels = [one_hot(codes.codes[:, i], size).double() * 0.5 ** (i / 2) for i, size in enumerate(sizes)]
    vectors, histories = torch.cat(levels, 1), random_histories(n_items, 5)
    histories[0] = NOTHING
    encoded = TigerVerifier(tiger, codes).encode(histories)
    expected, found = NeighbourDrafter(vectors).scores(encoded), CodeNeighbourDrafter(codes).scores(encoded)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    assert torch.equal(found.argsort(descending=True), expected.argsort(descending=True)), "ties by the item's number"
    assert expected.round(decimals=9).unique().numel() < expected.numel(), "there are ties"


@pytest.mark.parametrize("drafter", ["codes", "texts"])
def test_a_large_catalogue_is_scored_in_little_more_than_its_codes_or_vectors(drafter, monkeypatch):
    """1.5 M items of 3 x 256 codes were 9 GB of vectors in float64."""
    n_items = 200_000
    codes = Codes.from_semantic(torch.randint(256, (n_items, 3)), (256,) * 3)
    made = CodeNeighbourDrafter(codes) if drafter == "codes" else NeighbourDrafter(torch.randn(n_items, 8))
    held = [each for each in vars(made).values() if isinstance(each, torch.Tensor)]
    assert sum(each.nbytes for each in held) <= 32 * n_items
    encoded = Histories().encode(torch.randint(n_items, (2, 5)))
    whole = made.scores(encoded)
    monkeypatch.setattr("specgr.decoding.neighbours.BLOCK", 777)
    torch.testing.assert_close(made.scores(encoded), whole, atol=1e-14, rtol=0)


def test_a_drafter_alone_recommends_its_best_items(codes, tiger):
    class Fixed:
        def scores(self, encoded):
            scores = torch.arange(60.0).repeat(len(encoded.items), 1)
            scores[:, 58] = -torch.inf
            return scores

    lists = Drafted(TigerVerifier(tiger, codes), Fixed()).recommend(random_histories(60, 2), 60)
    assert lists.items[:, :3].tolist() == [[59, 57, 56]] * 2
    assert lists.items[:, -1].tolist() == [NOTHING] * 2
