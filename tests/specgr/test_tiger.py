import pytest
import torch

from genrec.runtime.errors import UserError
from specgr.data.codes import NOTHING
from specgr.networks.tiger import Tiger


@pytest.fixture
def encoded(codes, tiger):
    items = torch.tensor([[3, 1, 4, 1], [5, 9, NOTHING, NOTHING], [NOTHING, NOTHING, NOTHING, 2]])
    ids, mask = codes.history(items)
    return ids, mask, tiger.encode(ids, mask)


@torch.inference_mode()
@pytest.mark.parametrize("candidates", [1, 7])
def test_one_pass_over_many_identifiers_is_a_pass_over_each(codes, tiger, encoded, candidates):
    ids, mask, hidden = encoded
    tokens = codes.tokens[torch.randint(len(codes.tokens), (3, candidates))]
    logits = tiger.logits(hidden, mask, tokens)
    assert logits.shape == (3, candidates, codes.levels, codes.vocabulary_size)
    for candidate in range(candidates):
        expected = tiger.t5(input_ids=ids, attention_mask=mask, labels=tokens[:, candidate].clone()).logits
        torch.testing.assert_close(logits[:, candidate], expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_reading_token_by_token_from_the_cache_is_reading_at_once(codes, tiger, encoded):
    _, mask, hidden = encoded
    tokens = codes.tokens[[7, 8, 9]]
    tree, reader, logits = tiger.root(3, codes.levels), tiger.reader(hidden, mask), []
    nodes = torch.zeros(3, 1, dtype=torch.long)
    for depth in range(codes.levels):
        logits.append(reader.catch_up(tree, tree.size - 1).logits(nodes))
        if depth == 1:  # what is forgotten, or moved, leaves no trace
            mark = reader.bookmark()
            tree.append(nodes, tokens[:, [3]])
            reader.catch_up(tree, tree.size - 1)
            tree.cut(tree.size - 1)
            reader.return_to(mark)
            tree, _ = tree.keep(torch.arange(tree.size).expand(3, -1), codes.levels)
            reader.keep(torch.arange(tree.size).expand(3, -1), codes.levels)
        if depth < codes.levels - 1:
            nodes = tree.append(nodes, tokens[:, [depth]])
    expected = tiger.logits(hidden, mask, tokens[:, None])[:, 0]
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_an_embedding_is_the_normed_projection_of_the_mean_over_real_tokens(tiger, encoded):
    _, mask, hidden = encoded
    embeddings = tiger.embed(hidden, mask)
    for row in range(3):
        expected = tiger.projection(hidden[row, mask[row] == 1].mean(0))
        torch.testing.assert_close(embeddings[row], expected / expected.norm(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "cut"), [(1, 0), (2, 1), (9, 6)])
def test_encoding_by_length_is_encoding_where_there_is_something(codes, tiger, rows, cut):
    items = torch.randint(len(codes.tokens), (rows, 6)).where(torch.arange(6) < torch.randint(1, 6, (rows, 1)), NOTHING)
    items[-1] = torch.tensor([NOTHING] * 4 + [1, 2])  # padding in front stays
    ids, mask = codes.history(items)
    hidden, real = tiger.encode_by_length(ids, mask), mask.bool()
    torch.testing.assert_close(hidden[real], tiger.encode(ids, mask)[real], atol=1e-5, rtol=1e-5)
    assert hidden.shape[:2] == mask.shape
    assert (hidden[:, -1] == 0).all(-1).sum() == cut, "shorter parts end before"


def test_training_reaches_every_weight(codes, tiger, encoded):
    _, mask, hidden = encoded
    (tiger.logits(hidden, mask, codes.tokens[[7, 8, 9], None]).logsumexp(-1).sum() + tiger.embed(hidden, mask)[0, 0]
     ).backward()  # fmt: skip
    assert all(weight.grad is not None and weight.grad.any() for weight in tiger.parameters() if weight.dim() > 1)


def test_a_tiger_is_read_as_it_was_written(tiger, encoded, tmp_path):
    ids, mask, hidden = encoded
    tiger.save(tmp_path / "tiger")
    again = Tiger.load(tmp_path / "tiger")
    torch.testing.assert_close(again.encode(ids, mask), hidden, atol=0, rtol=0)
    torch.testing.assert_close(again.embed(hidden, mask), tiger.embed(hidden, mask), atol=0, rtol=0)


def test_what_is_no_tiger_is_refused_by_name(tiger, tmp_path):
    with pytest.raises(UserError, match=r"tiger\.json"):
        Tiger.load(tmp_path)
    tiger.save(tmp_path / "tiger")
    with torch.no_grad():
        tiger.t5.shared.weight[0] = float("inf")
    tiger.save(tmp_path / "odd")
    with pytest.raises(UserError, match=r"odd: its weights t5\.shared.* are not all numbers"):
        Tiger.load(tmp_path / "odd")
    (tmp_path / "tiger" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="not a TIGER"):
        Tiger.load(tmp_path / "tiger")
