"""The batched algorithm against one written plainly, for one user at a time."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from specgr.data.codes import NOTHING
from specgr.decoding.item_drafters import EncoderDrafter, item_embeddings
from specgr.decoding.neighbours import NeighbourDrafter
from specgr.decoding.prefixes import Prefixes
from specgr.decoding.specgr_search import UNVERIFIED, SpecGR, SpecGRSettings
from specgr.decoding.verifier import TigerVerifier
from specgr.networks import t5_reader
from tiny_tiger import random_codes, random_histories, random_tiger

N_ITEMS, BATCH = 60, 6


class Noise:
    """A drafter whose scores depend on nothing but the history; some items it forbids."""

    def __init__(self, forbidden=()):
        self.forbidden = list(forbidden)

    def scores(self, encoded):
        seeds = encoded.items.clamp(min=0).sum(-1).tolist()
        scores = torch.stack([torch.rand(N_ITEMS, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        scores[:, self.forbidden] = -torch.inf
        return scores


@cache
def verifier_of(seed):
    codes = random_codes(N_ITEMS, seed)
    return TigerVerifier(random_tiger(codes, seed), codes)


def make(drafter=None, seed=0, **settings):
    verifier = verifier_of(seed)
    codes, tiger = verifier.codes, verifier.tiger
    if drafter is None:
        drafter = EncoderDrafter(tiger, item_embeddings(tiger, codes))
    seen = torch.rand(N_ITEMS, generator=torch.Generator().manual_seed(seed)) < 0.6
    return SpecGR(verifier, drafter, Prefixes.of(codes), seen, SpecGRSettings(**settings))


@pytest.mark.parametrize("threshold", [-4.0, -1e9, 1e9])
def test_without_adjusting_a_new_item_is_scored_as_one_that_was_seen(threshold):
    given = {"draft_size": 5, "num_beams": 4, "threshold": threshold}
    histories = random_histories(N_ITEMS, BATCH)
    unadjusted = make(**given, adjust_likelihood=False)
    all_seen = replace(make(**given), seen=torch.ones(N_ITEMS, dtype=torch.bool))
    found, expected = (one.recommend(histories, 8) for one in (unadjusted, all_seen))
    torch.testing.assert_close((found.items, found.scores), (expected.items, expected.scores))
    assert not torch.equal(found.scores, make(**given).recommend(histories, 8).scores)


@cache
def following_in(verifier, history):
    """prefix -> log-probabilities (V,) of what follows, as transformers' decoder has them; filled by `look_up`."""
    return {}


def look_up(verifier, history, prefixes):
    """The log-probabilities after prefixes of one length."""
    known = following_in(verifier, history)
    new = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in known]
    if new:
        ids, mask = (x.expand(len(new), -1) for x in verifier.codes.history(torch.tensor([history])))
        inputs = torch.tensor([[0, *prefix] for prefix in new])
        logits = verifier.tiger.t5(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs).logits[:, -1]
        known.update(zip(new, logits.log_softmax(-1).tolist(), strict=True))
    return [known[prefix] for prefix in prefixes]


@torch.inference_mode()
def naive(specgr, history, k):
    """One user's list, its V, rounds, drafted and accepted, by the words of the algorithm."""
    codes, settings = specgr.verifier.codes, specgr.settings
    tokens, seen = codes.tokens.tolist(), specgr.seen.tolist()
    drafter_scores = specgr.drafter.scores(specgr.verifier.encode(history[None]))[0].tolist()
    ranked = sorted(range(N_ITEMS), key=lambda item: -drafter_scores[item])
    ranked = [item for item in ranked if drafter_scores[item] > -math.inf]

    def following(prefixes):
        return look_up(specgr.verifier, tuple(history.tolist()), prefixes)

    for length in range(codes.levels):  # all at once: the reference is to be plain, not slow
        following([tuple(item[:length]) for item in tokens])

    def v(item):
        each = [following([tuple(tokens[item][:i])])[0][tokens[item][i]] for i in range(codes.levels)]
        each = each if seen[item] else each[:-1]
        return sum(each) / len(each)

    accepted, rejected, beams, rounds = {}, {}, {(): 0.0}, 0
    while rounds < codes.levels and (len(accepted) < k or not settings.adaptive_exit):
        free = [
            i for i in ranked
            if i not in {**accepted, **rejected} and (tuple(tokens[i][:rounds]) in beams or not settings.guided)
        ]  # fmt: skip
        for item in free[: settings.draft_size]:
            (accepted if v(item) > settings.threshold else rejected)[item] = v(item)
        rounds += 1
        after = zip(beams.items(), following(list(beams)), strict=True)
        grown = {(*b, t): s + lp for (b, s), log_probs in after for t, lp in enumerate(log_probs)}
        beams = dict(sorted(grown.items(), key=lambda pair: -pair[1])[: settings.num_beams])
    drafted = len(accepted) + len(rejected)
    if len(accepted) >= k:
        best = accepted
    else:
        ends = [i for i in ranked if tuple(tokens[i]) in beams and i not in accepted and i not in rejected]
        others = {**rejected, **{item: v(item) for item in ends}}
        others = dict(sorted(others.items(), key=lambda pair: -pair[1])[: k - len(accepted)])
        best = {**accepted, **others}
        rest = [i for i in ranked if i not in best and i not in rejected and i not in ends]
        best |= {item: UNVERIFIED - rank for rank, item in enumerate(rest[: k - len(best)])}
    best = sorted(best.items(), key=lambda pair: -pair[1])[:k]
    return best, rounds, drafted, len(accepted)


CASES = {
    "many rounds": {"draft_size": 6, "num_beams": 10, "threshold": -3.5},
    "few accepted": {"draft_size": 8, "num_beams": 5, "threshold": -3.0},
    "none accepted": {"draft_size": 4, "num_beams": 4, "threshold": math.inf},
    "all accepted": {"draft_size": 7, "num_beams": 12, "threshold": -math.inf},
    "one beam, one draft": {"draft_size": 1, "num_beams": 1, "threshold": -3.3},
    "wider than the vocabulary": {"draft_size": 3, "num_beams": 25, "threshold": -3.3},
    "more drafts than items": {"draft_size": 100, "num_beams": 5, "threshold": -3.3},
    "without guidance": {"draft_size": 6, "num_beams": 10, "threshold": -3.5, "guided": False},
    "without guidance, few accepted": {"draft_size": 8, "num_beams": 5, "threshold": -3.0, "guided": False},
    "all rounds": {"draft_size": 6, "num_beams": 10, "threshold": -3.5, "adaptive_exit": False},
    "all rounds without guidance": {
        "draft_size": 3,
        "num_beams": 9,
        "threshold": -3.5,
        "guided": False,
        "adaptive_exit": False,
    },
}


@pytest.mark.parametrize("drafter", [None, Noise(forbidden=[0, 3, 59])], ids=["encoder", "noise"])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_decoded_as_each_user_alone_by_the_words_of_the_algorithm(case, drafter):
    specgr, k = make(drafter, **CASES[case]), 12
    histories = random_histories(N_ITEMS, BATCH)
    lists = specgr.recommend(histories, k)
    for row in range(BATCH):
        best, rounds, drafted, accepted = naive(specgr, histories[row], k)
        assert lists.items[row].tolist() == [item for item, _ in best]
        torch.testing.assert_close(lists.scores[row], torch.tensor([v for _, v in best]), atol=1e-4, rtol=1e-4)
        assert (lists.rounds[row], lists.drafted[row], lists.accepted[row]) == (rounds, drafted, accepted)


def test_the_cases_end_after_different_rounds():
    """Else the test above would not try what it is for."""
    rounds = make(**CASES["many rounds"]).recommend(random_histories(N_ITEMS, BATCH), 12).rounds
    assert len(rounds.unique()) > 1


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_its_requests_one_by_one(seed):
    specgr = make(seed=seed, draft_size=6, num_beams=10, threshold=-3.5)
    histories = random_histories(N_ITEMS, BATCH, seed=seed)
    together = specgr.recommend(histories, 12)
    for row in range(BATCH):
        alone = specgr.recommend(histories[row : row + 1], 12)
        assert torch.equal(alone.items[0], together.items[row])
        torch.testing.assert_close(alone.scores[0], together.scores[row], atol=1e-4, rtol=1e-4)


def test_rows_read_a_few_at_a_time_are_rows_read_together(monkeypatch):
    specgr, histories = make(draft_size=6, num_beams=10, threshold=-3.5), random_histories(N_ITEMS, BATCH)
    together = specgr.recommend(histories, 12)
    monkeypatch.setattr(t5_reader, "BLOCK", 2 * 10 * specgr.verifier.codes.vocabulary_size)  # two rows of 10 beams
    parts = specgr.recommend(histories, 12)
    assert torch.equal(parts.items, together.items)
    torch.testing.assert_close(parts.scores, together.scores, atol=1e-4, rtol=1e-4)


class Watched(SpecGR):
    """Notes what is drafted under which beams."""

    def draft(self, left, beams, depth):
        items, owner, there = super().draft(left, beams, depth)
        tokens = beams.sequences[..., :depth]
        object.__setattr__(self, "notes", [*getattr(self, "notes", []), (items, there, tokens)])
        return items, owner, there


def test_nothing_is_drafted_twice_and_later_drafts_begin_with_a_beam_of_the_same_user():
    watched = Watched(**vars(make(draft_size=5, num_beams=6, threshold=math.inf)))
    lists = watched.recommend(random_histories(N_ITEMS, BATCH), 12)
    tokens = watched.prefixes.tokens.tolist()
    assert len(watched.notes) == 4
    later = 0
    for row in range(BATCH):
        drafted = []
        for depth, (items, there, beams) in enumerate(watched.notes):
            mine = {tuple(beam) for beam in beams[row].tolist()}
            others = {tuple(beam) for other in range(BATCH) for beam in beams[other].tolist()} - mine
            new = items[row][there[row]].tolist()
            assert all(tuple(tokens[item][:depth]) in mine for item in new)
            later += len(new) * bool(others)
            drafted += new
        assert len(set(drafted)) == len(drafted) == lists.drafted[row]
    assert later > BATCH  # there were other users' beams to be misled by


@pytest.mark.parametrize("threshold", [-math.inf, -3.3, math.inf])
@pytest.mark.parametrize("k", [1, 30, N_ITEMS, 2 * N_ITEMS])
def test_k_distinct_items_are_returned_while_the_catalogue_has_them(k, threshold):
    lists = make(draft_size=3, num_beams=4, threshold=threshold).recommend(random_histories(N_ITEMS, BATCH), k)
    assert lists.items.shape == (BATCH, min(k, N_ITEMS))
    assert all(len(set(row)) == len(row) for row in lists.items.tolist())
    assert (lists.items >= 0).all()
    assert (lists.scores.diff() <= 0).all()


def test_a_forbidden_item_is_never_recommended():
    lists = make(Noise(forbidden=range(0, N_ITEMS, 2)), draft_size=9, num_beams=30).recommend(
        random_histories(N_ITEMS, BATCH), N_ITEMS
    )
    assert (lists.items[:, : N_ITEMS // 2] % 2 == 1).all()
    assert (lists.items[:, N_ITEMS // 2 :] == NOTHING).all()


def test_decoding_ends_as_soon_as_every_row_has_k_accepted():
    class Counting(TigerVerifier):
        passes = 0

        def reader(self, encoded):
            reader = super().reader(encoded)
            catch_up = reader.catch_up

            def counted(*arguments):
                Counting.passes += 1
                return catch_up(*arguments)

            reader.catch_up = counted
            return reader

    specgr = make(draft_size=6, num_beams=30, threshold=-math.inf)
    specgr = replace(specgr, verifier=Counting(specgr.verifier.tiger, specgr.verifier.codes))
    for k, passes in [(6, 1), (7, 2), (12, 2)]:
        Counting.passes = 0
        lists = specgr.recommend(random_histories(N_ITEMS, BATCH), k)
        assert Counting.passes == passes
        assert lists.rounds.tolist() == [passes] * BATCH
        assert lists.accepted.tolist() == [6 * passes] * BATCH


def test_a_third_drafter_is_one_class():
    specgr = make(NeighbourDrafter(torch.randn(N_ITEMS, 4)), draft_size=6, num_beams=10)
    lists = specgr.recommend(random_histories(N_ITEMS, BATCH), 5)
    assert (lists.items != NOTHING).all()


@pytest.mark.parametrize("wrong", [{"draft_size": 0}, {"num_beams": 0}, {"threshold": math.nan}])
def test_settings_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpecGRSettings(**wrong)
