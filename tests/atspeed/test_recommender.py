"""`Recommender`: its lists are those of `generate` over what may be served, whatever the batch and the draft."""

import pandas as pd
import pytest
import torch

from atspeed import Recommendation, Recommender
from atspeed.benchmark.recommendation_quality import Generative
from atspeed.checkpoints.loading import random_model
from conftest import noisy_copy
from genrec.data.item_numbers import read_raw_ids
from genrec.data.toy import make_toy
from genrec.runtime.errors import UserError

HISTORIES = [[3], [5, 7, 9], [1, 2, 3, 4, 5, 6, 7, 8], [11, 11], [40, 2, 33, 7], [9]]


@pytest.fixture(scope="module")
def parts():
    """(target, draft, tokenizer, catalogue) of a toy, some items of which share an identifier."""
    catalogue = make_toy(n_items=300, n_users=60).catalogue
    shared = catalogue.identifiers | {60: catalogue.identifiers[61], 62: catalogue.identifiers[61]}
    catalogue = type(catalogue)(shared)
    target, tokenizer = random_model("micro", catalogue, "float32", 1)
    return target, noisy_copy(target, 0.02), tokenizer, catalogue


def by_generate(parts, history, k, served):
    """Items and scores by `generate`, one history at a time."""
    target, _, tokenizer, catalogue = parts
    encoder = Recommender(target, tokenizer, catalogue)._encoder
    prompt = torch.tensor([encoder.encode(history)])
    children = {}
    for path in {tuple(encoder.identifiers[item]) for item in served}:
        for depth in range(len(path)):
            children.setdefault(path[:depth], set()).add(path[depth])
    output = target.generate(
        prompt, attention_mask=torch.ones_like(prompt), num_beams=k, num_return_sequences=k,
        max_new_tokens=catalogue.levels, do_sample=False, length_penalty=0.0, early_stopping=False, pad_token_id=0,
        eos_token_id=None, output_scores=True, return_dict_in_generate=True,
        prefix_allowed_tokens_fn=lambda _, sent: sorted(children.get(tuple(sent[prompt.shape[1] :].tolist()), {0})),
    )  # fmt: skip
    paths, scores = output.sequences[:, prompt.shape[1] :].tolist(), output.sequences_scores.tolist()
    ranked = [
        (item, score)
        for path, score in zip(paths, scores, strict=True) if score > -1e5
        for item in sorted(served) if encoder.identifiers[item] == path
    ][:k]  # fmt: skip
    return [item for item, _ in ranked], [score for _, score in ranked]


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_lists_are_those_of_generate_in_the_order_of_the_histories(parts, drafted, batch_size):
    target, draft, tokenizer, catalogue = parts
    recommender = Recommender(target, tokenizer, catalogue, draft if drafted else None, batch_size=batch_size)
    for _ in range(3):  # whoever drafts
        lists = recommender.recommend(HISTORIES, k=5)
        for history, found in zip(HISTORIES, lists, strict=True):
            items, scores = by_generate(parts, history, 5, catalogue.identifiers)
            assert found.items == items
            assert found.scores == pytest.approx(scores, abs=1e-4)
    assert "| drafter | requests |" in recommender.report()


def test_what_is_excluded_or_not_allowed_stands_in_no_list_and_the_rest_are_those_of_generate_without_it(parts):
    target, draft, tokenizer, catalogue = parts
    recommender = Recommender(target, tokenizer, catalogue, draft, batch_size=4)
    best = [found.items for found in recommender.recommend(HISTORIES, k=5)]
    shop = list(range(30, 90))
    exclude = [best[0], [60], [], best[3][:2], [61, 60, 62], range(300)]
    allow = [None, None, shop, shop, None, [1, 2]]
    lists = recommender.recommend(HISTORIES[:5], k=5, exclude=exclude[:5], allow=allow[:5], exclude_seen=True)
    for history, no, only, found in zip(HISTORIES, exclude, allow, lists, strict=False):
        served = set(only or catalogue.identifiers) - set(no) - set(history)
        items, scores = by_generate(parts, history, 5, served)
        assert found.items == items
        assert found.scores == pytest.approx(scores, abs=1e-4)
    nothing = recommender.recommend(HISTORIES[5:], k=5, exclude=exclude[5:], allow=allow[5:])
    assert nothing == [Recommendation([], [])]
    (two,) = recommender.recommend([[3]], k=5, allow=[[8, 9]])
    assert sorted(two.items) == [8, 9], "a shorter list"


def test_the_lists_whose_quality_is_measured_can_leave_out_what_was_seen(parts):
    target, _, tokenizer, catalogue = parts
    measured = Generative(target, tokenizer, catalogue, cutoff=512, batch_size=4)
    best = [each.items for batch in measured.recommend(HISTORIES, [set()] * 6, 5, 0, 1, set()) for each in batch]
    seen = [{*best[0], 60}, {60}, set(), {61, 60, 62}, set(best[3][:2]), {*range(290)}]
    lists = {
        each.request: each.items for batch in measured.recommend(HISTORIES, seen, 5, 0, 1, set()) for each in batch
    }
    for number, (history, no) in enumerate(zip(HISTORIES, seen, strict=True)):
        assert lists[number][:5] == by_generate(parts, history, 5, set(catalogue.identifiers) - no)[0]


def test_items_that_share_an_identifier_stand_together_and_those_excluded_do_not(parts):
    target, _, tokenizer, catalogue = parts
    recommender = Recommender(target, tokenizer, catalogue)
    (together,) = recommender.recommend([[3]], k=3, allow=[[60, 61, 62, 7]])
    place = together.items.index(60)
    assert together.items[place : place + 3] == [60, 61, 62][: 3 - place]
    (without,) = recommender.recommend([[3]], k=3, allow=[[60, 61, 62]], exclude=[[61]])
    assert without.items == [60, 62]
    assert without.scores[0] == without.scores[1]


def test_raw_ids_are_read_and_written(parts, tmp_path):
    target, _, tokenizer, catalogue = parts
    items = sorted(catalogue.identifiers)
    for name, write in (("items.parquet", "to_parquet"), ("items.csv", "to_csv")):
        table = pd.DataFrame({"raw_id": [f"B{item:03}" for item in items], "item": items})
        getattr(table, write)(tmp_path / name, index=False)
        recommender = Recommender(target, tokenizer, catalogue, raw_ids=read_raw_ids(tmp_path / name, catalogue))
        (found,) = recommender.recommend([["B003", "nothing", "B007"]], k=4, on_unknown="skip")
        (expected,) = Recommender(target, tokenizer, catalogue).recommend([[3, 7]], k=4)
        assert found.items == [f"B{item:03}" for item in expected.items]
    table[1:].to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(UserError, match="item 0 of the catalogue has no raw id there"):
        read_raw_ids(tmp_path / "few.csv", catalogue)
    table.rename(columns={"raw_id": "asin"}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UserError, match="has no column raw_id"):
        read_raw_ids(tmp_path / "other.csv", catalogue)


@pytest.mark.parametrize(
    ("histories", "options", "message"),
    [
        ([[3], [999]], {}, "history 1: item 999 is not in the catalogue; leave it out, or pass on_unknown='skip'"),
        ([["B003"]], {}, "item 'B003' is not in the catalogue, which has item numbers"),
        ([[3], []], {}, "history 1: holds no item of the catalogue"),
        ([[999]], {"on_unknown": "skip"}, "history 0: holds no item of the catalogue"),
        ([[3]], {"on_unknown": "ignore"}, "on_unknown 'ignore': choose 'error' or 'skip'"),
        ([[3]], {"k": 0}, "k 0: must be from 1 to"),
        ([[3]], {"k": 1000}, "k 1000: must be from 1 to"),
        ([[3]], {"exclude": [[1], [2]]}, "exclude: give one collection for each of the 1 histories, not 2"),
        ([[3]], {"allow": [[]]}, "history 0: its allow-list holds no item"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(parts, histories, options, message):
    target, _, tokenizer, catalogue = parts
    with pytest.raises(UserError, match=message):
        Recommender(target, tokenizer, catalogue).recommend(histories, **options)


def test_no_history_is_no_list(parts):
    target, _, tokenizer, catalogue = parts
    assert Recommender(target, tokenizer, catalogue).recommend([]) == []
