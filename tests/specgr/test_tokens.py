import pytest
import torch

from genrec.data.catalogue import Catalogue
from genrec.runtime.errors import UserError
from specgr.data.codes import PAD, Codes

SEMANTIC = torch.tensor([[0, 1], [2, 0], [0, 1], [0, 0], [0, 1]])


def test_items_that_share_semantic_codes_are_numbered_in_order():
    codes = Codes.from_semantic(SEMANTIC, sizes=(3, 2), digits=4)
    assert codes.codes.tolist() == [[0, 1, 0], [2, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 2]]
    assert codes.sizes == (3, 2, 4)
    assert codes.tokens.tolist() == [[1, 5, 6], [3, 4, 6], [1, 5, 7], [1, 4, 6], [1, 5, 8]]
    assert codes.vocabulary_size == 10


def test_a_history_is_its_items_tokens_and_padding():
    codes = Codes.from_semantic(SEMANTIC, sizes=(3, 2), digits=4)
    ids, mask = codes.history(torch.tensor([[1, 4], [3, -1], [-1, 0]]))
    assert ids.tolist() == [[3, 4, 6, 1, 5, 8], [1, 4, 6, PAD, PAD, PAD], [PAD, PAD, PAD, 1, 5, 6]]
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]


def test_bos_and_eos_stand_around_what_there_is():
    codes = Codes.from_semantic(SEMANTIC, sizes=(3, 2), digits=4, bos_eos=True)
    assert codes.vocabulary_size == 12
    ids, mask = codes.to("cpu").history(torch.tensor([[1, 4], [3, -1], [-1, 0], [-1, -1]]))
    assert ids.tolist() == [
        [10, 3, 4, 6, 1, 5, 8, 11],
        [10, 1, 4, 6, 11, PAD, PAD, PAD],
        [PAD, PAD, PAD, 10, 1, 5, 6, 11],
        [10, 11, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert mask.tolist() == [[1] * 8, [1] * 5 + [0] * 3, [0] * 3 + [1] * 5, [1] * 2 + [0] * 6]


def test_a_catalogue_of_the_atspeed_layout_keeps_all_but_its_last_level():
    names = [("<a_2>", "<b_0>", "<c_7>"), ("<a_10>", "<b_0>", "<c_7>"), ("<a_2>", "<b_0>", "<c_7>")]
    codes = Codes.from_catalogue(Catalogue(dict(enumerate(names))), digits=2)
    assert codes.codes.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert codes.sizes == (2, 1, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Codes.from_semantic(SEMANTIC, (3, 2), digits=2), UserError, r"3 items share .* \[0, 1\]"),
        (lambda: Codes(SEMANTIC, (3, 2)), ValueError, "items 0 and 2 share the identifier"),
        (lambda: Codes(SEMANTIC, (2, 2)), ValueError, "item 1: code 2 at level 0 is not among its 2"),
        (lambda: Codes(SEMANTIC, (3,)), ValueError, "one column for each"),
        (lambda: Codes.from_catalogue(Catalogue({0: ("a", "b"), 2: ("a", "b")})), UserError, "lacks item 1"),
        (lambda: Codes.from_catalogue(Catalogue({0: ("a",)})), UserError, "one token an item"),
    ],
)
def test_codes_that_cannot_be_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_codes_are_read_as_they_were_written(codes, tmp_path):
    codes.save(tmp_path / "codes.safetensors")
    again = Codes.load(tmp_path / "codes.safetensors")
    assert torch.equal(again.codes, codes.codes)
    assert again.sizes == codes.sizes
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        Codes.load(tmp_path / "absent.safetensors")
