import pytest
import torch
from torch.nn.functional import cosine_similarity

from specgr.data.codes import NOTHING, Codes
from specgr.decoding.item_drafters import Drafted, EncoderDrafter, item_embeddings
from specgr.decoding.neighbours import NeighbourDrafter, code_vectors
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
        NeighbourDrafter(vectors, decay=0.0)


def test_code_vectors_are_as_alike_as_the_semantic_codes():
    codes = Codes(torch.tensor([[0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1]]), (2, 2, 2, 2))
    products = code_vectors(codes) @ code_vectors(codes).T
    torch.testing.assert_close(products[0], torch.tensor([1.75, 1.5, 0.75, 1.75]))  # levels are worth 1, 1/2 and 1/4


def test_a_drafter_alone_recommends_its_best_items(codes, tiger):
    class Fixed:
        def scores(self, encoded):
            scores = torch.arange(60.0).repeat(len(encoded.items), 1)
            scores[:, 58] = -torch.inf
            return scores

    lists = Drafted(TigerVerifier(tiger, codes), Fixed()).recommend(random_histories(60, 2), 60)
    assert lists.items[:, :3].tolist() == [[59, 57, 56]] * 2
    assert lists.items[:, -1].tolist() == [NOTHING] * 2
