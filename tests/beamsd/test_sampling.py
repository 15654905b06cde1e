"""The two random verifications against theory, enumerated on a tiny trie, and the noise that they draw on.

Seeds are fixed, so a test gives the same verdict each time.
"""

from collections import Counter
from copy import deepcopy
from functools import cache
from itertools import product
from math import exp, log, pi, prod, sqrt

import pytest
import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList, TemperatureLogitsWarper

from beamsd import Trie, beam_search
from beamsd.search.noise import ACCEPT, DRAFT, PERTURB, RESIDUAL, TARGET, gumbel, uniform
from conftest import noisy_copy, random_items, random_prompts, tiny_llama

PROMPT, EOS = (9, 5), 2
EQUAL = [(4, 7, 10), (4, 7, 11), (4, 8, 10), (5, 7, 10), (5, 8, 11), (6, 8, 10), (6, 9, 11), (6, 9, 10)]
# Some are the beginning of others, so that sequences may end side by side and one after the other.
UNEQUAL = [(4,), (4, 7), (4, 7, 10), (5, 8), (5, 8, 11), (6,), (6, 9, 11)]


@cache
def model(seed):
    return tiny_llama(seed, 1, hidden=16, vocabulary=12)


TARGET_SEED, OTHER_SEED = 12, 9  # neither is sure of itself, nor do they agree


# Theory


@cache
def probabilities(seed, sequences, renormalised=False):
    """{prefix: probability} of the sequences and all their beginnings: over the full vocabulary, or `renormalised` at
    each step over the tokens that may follow."""
    found = {(): 1.0}
    for length in range(max(map(len, sequences))):
        children = {s[: length + 1] for s in sequences if len(s) > length}
        for prefix in {child[:-1] for child in children}:
            with torch.no_grad():
                step = model(seed)(torch.tensor([PROMPT + prefix])).logits[0, -1].double().softmax(-1).tolist()
            legal = {child: step[child[-1]] for child in children if child[:-1] == prefix}
            total = sum(legal.values()) if renormalised else 1
            found |= {child: found[prefix] * probability / total for child, probability in legal.items()}
    return found


def draws(weights, n):
    """{draw: probability} of all ways to draw n in order without replacement, fewer where there are fewer."""
    if not n or not weights:
        return {(): 1.0}
    total, found = sum(weights.values()), {}
    for first, weight in weights.items():
        rest = {other: weights[other] for other in weights if other != first}
        for others, probability in draws(rest, n - 1).items():
            found[(first, *others)] = weight / total * probability
    return found


def continuations(probability, beams):
    """{sequence: probability} over the continuations of the beams."""
    weights = {sequence: weight for sequence, weight in probability.items() if sequence and sequence[:-1] in beams}
    return {sequence: weight / sum(weights.values()) for sequence, weight in weights.items()}


def verified(p, q, drawn, width):
    """{set of kept: probability}: what Algorithm 2 makes of the draws `drawn` from q."""
    accept, found = [min(1, p[x] / q[x]) for x in drawn], Counter()
    for verdict in product((True, False), repeat=len(drawn)):
        chance = prod(a if yes else 1 - a for a, yes in zip(accept, verdict, strict=True))
        accepted = tuple(x for x, yes in zip(drawn, verdict, strict=True) if yes)
        surplus = {x: p[x] - q[x] for x in p if p[x] > q[x] and x not in accepted}
        for residual, c in draws(surplus, len(drawn) - len(accepted)).items():
            kept = (accepted + residual)[:width]
            # Where too few were drawn, the target draws the rest.
            for missing, d in draws({x: p[x] for x in p if x not in kept}, width - len(kept)).items():
                found[frozenset(kept + missing)] += chance * c * d
    return found


def relaxed(target, draft=None, width=1, draft_width=0, gamma=0):
    """{set of items: probability} under relaxed sampling; gamma = 0 is K plain draws a level."""

    def begin(beams):
        """A new round."""
        depth, last = len(min(beams)), len(max(target, key=len))
        return {beams: 1.0} if depth == last else go_on(beams, beams, min(gamma, last - 1 - depth))

    @cache
    def go_on(beams, drafted, levels):
        """The rest of a round, of which `levels` drafted levels are left and the draft's own beams are `drafted`."""
        p, found = continuations(target, beams), Counter()

        def add(then, chance):
            for items, c in then.items():
                found[items] += chance * c

        if not levels:
            for kept, chance in draws(p, width).items():
                add(begin(frozenset(kept)), chance)
            return found
        q = continuations(draft, beams)
        for drawn, chance in draws(continuations(draft, drafted), draft_width).items():
            here = [x for x in drawn if x[:-1] in beams]
            for kept, c in verified(p, q, here, width).items():
                then = go_on(kept, frozenset(drawn), levels - 1) if kept <= {*drawn} else begin(kept)
                add(then, chance * c)
        return found

    return begin(frozenset([()]))


# Practice


def search(n, sequences, draft=OTHER_SEED, **options):
    """One request under the seeds 0 ... n - 1, and the lists of items it got, best first."""
    result = beam_search(
        model(TARGET_SEED), torch.tensor([PROMPT]).expand(n, -1), trie=Trie.from_sequences(sequences),
        draft=model(draft), seeds=range(n), **options,
    )  # fmt: skip
    lists = zip(result.sequences.tolist(), result.lengths.tolist(), strict=True)
    return result, [tuple(tuple(s[:end]) for s, end in zip(*each, strict=True) if end) for each in lists]


def assert_drawn_from(expected, outcomes):
    """Pearson's chi-square test; rare outcomes are pooled."""
    n, counts = len(outcomes), Counter(outcomes)
    assert sum(expected.values()) == pytest.approx(1)
    assert counts.keys() <= expected.keys(), "an outcome that cannot be"
    common = [outcome for outcome, probability in expected.items() if n * probability >= 5]
    cells = [(counts[outcome], n * expected[outcome]) for outcome in common]
    rare = (n - sum(seen for seen, _ in cells), n - sum(mean for _, mean in cells))
    cells += [rare] if rare[1] >= 5 else []
    freedom = len(cells) - 1
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    # Four standard deviations: the mistakes that this is to find come to ten and more.
    assert (statistic - freedom) / sqrt(2 * freedom) < 4, f"chi-square {statistic:.0f} with {freedom} degrees"


# Relaxed sampling


@pytest.mark.parametrize("gamma", [0, 1, 2])
@pytest.mark.parametrize(
    ("draft", "width", "draft_width"),
    [(TARGET_SEED, 1, 3), (TARGET_SEED, 2, 2), (TARGET_SEED, 2, 5), (TARGET_SEED, 4, 6), (OTHER_SEED, 1, 1)],
)
def test_relaxed_is_sampling_without_replacement_from_the_target(draft, width, draft_width, gamma):
    """With a draft equal to the target p/q is 1, so the first K draws are kept. Which of the N draws of the next level
    lie below these K is known draw by draw, so those that do are draws from the K beams' own continuations, and where
    they run out, the target draws from what is left.

    With one beam and one draft it is speculative sampling, exact for any draft and at any depth: the draft draws each
    level from q given the very prefix that the target has kept, and all noise of a level is its own.

    Four beams are more than there are first codes."""
    options = dict(width=width, draft_width=draft_width, gamma=gamma)
    result, lists = search(6000, EQUAL, draft, verification="relaxed", **options)
    expected = relaxed(probabilities(TARGET_SEED, tuple(EQUAL)), width=width)
    assert_drawn_from(expected, [frozenset(each) for each in lists])
    if gamma and draft == TARGET_SEED:
        assert (result.accepted[:, 0] >= 1).all(), "the first level is all draft"


@pytest.mark.parametrize(("width", "draft_width", "gamma"), [(1, 2, 2), (1, 3, 1), (1, 3, 2), (2, 2, 2), (2, 3, 2)])
def test_relaxed_with_another_draft_is_algorithm_2(width, draft_width, gamma):
    """Then it is not the target's distribution, but still a known one: acceptance in the order of drawing, p and q over
    the same sequences (the first level among them), and what is missing from norm(max(p - q, 0)) all show. The rows
    are in one batch at different depths: a last level is the target's in any case."""
    options = dict(width=width, draft_width=draft_width, gamma=gamma)
    target, draft = (probabilities(seed, tuple(EQUAL)) for seed in (TARGET_SEED, OTHER_SEED))
    expected = relaxed(target, draft, **options)
    _, lists = search(6000, EQUAL, verification="relaxed", **options)
    assert_drawn_from(expected, [frozenset(each) for each in lists])


# Coupled sampling

ITEMS = {
    1: [(token,) for token in range(4, 12)],
    2: [(4, 7), (4, 8), (5, 7), (5, 9), (6, 8), (6, 10), (6, 11)],
    4: [(4, 7, 10, 5), (4, 7, 10, 6), (4, 7, 11, 5), (4, 8, 10, 5), (5, 7, 10, 6), (5, 7, 11, 5), (5, 8, 11, 6)],
}


@pytest.mark.parametrize("levels", ITEMS)
@pytest.mark.parametrize(("width", "draft_width"), [(1, 1), (1, 5), (2, 3), (3, 8)])
def test_coupled_is_sampling_without_replacement_from_the_target_for_any_draft_and_width(levels, width, draft_width):
    """Relaxed sampling is so for a draft that is the target alone, or for one beam and one draw."""
    items = ITEMS[levels]
    expected = relaxed(probabilities(TARGET_SEED, tuple(items)), width=width)
    for gamma in (1, 3):
        options = dict(width=width, draft_width=draft_width, gamma=gamma)
        result, lists = search(6000, items, verification="coupled", **options)
        assert_drawn_from(expected, [frozenset(each) for each in lists])
    if levels > 1 and draft_width > 1:
        assert (result.accepted[:, 0] > 0).any(), "something is drafted in vain, and something is not"


def test_relaxed_has_a_bias_that_coupled_has_not():
    """The total variation between what is drawn and the target's own draws, enumerated."""
    target, draft = (probabilities(seed, tuple(ITEMS[2])) for seed in (TARGET_SEED, OTHER_SEED))
    exact, drawn = relaxed(target, width=1), relaxed(target, draft, width=1, draft_width=3, gamma=1)
    assert sum(abs(exact[items] - drawn.get(items, 0)) for items in exact) / 2 > 0.05
    options = dict(width=1, draft_width=3, gamma=1)
    (_, biased), (_, coupled) = (search(6000, ITEMS[2], verification=v, **options) for v in ("relaxed", "coupled"))
    assert_drawn_from(drawn, [frozenset(each) for each in biased])
    assert_drawn_from(exact, [frozenset(each) for each in coupled])
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(exact, [frozenset(each) for each in biased])


@pytest.mark.parametrize("drafter", ["model", "trie", "hybrid", "none"])
def test_coupled_gives_the_same_list_whoever_drafts(drafter):
    target, (ids, mask) = tiny_llama(1, 1), random_prompts(30, 9)
    options = dict(trie=Trie(random_items(200)), width=3, verification="coupled", seeds=range(30))
    own = beam_search(target, ids, mask, drafter="none", **options)
    drafts = {"opposed": opposed(target), "noisy": noisy_copy(target, 0.1), "the target": target}
    for name, draft in drafts.items():
        result = beam_search(
            target, ids, mask, draft=draft, drafter=drafter, draft_width=6, gamma=2, **options
        )  # fmt: skip
        assert torch.equal(result.sequences, own.sequences), name
        torch.testing.assert_close(result.log_probs, own.log_probs, atol=1e-4, rtol=1e-4)
        if drafter == "model" and name == "the target":
            assert (result.target_calls == 2).all(), "two levels a round, and one for free"


def test_a_code_of_probability_999_in_1000_is_not_lost_94_times_in_100():
    """As it was where K were kept at random among the accepted of 20 drafts, all of them where draft = target."""
    certain = tiny_llama(1, 1)
    certain.lm_head = torch.nn.Linear(32, 40)  # the same after any prefix
    certain.lm_head.weight.data.zero_()
    certain.lm_head.bias.data = torch.tensor([0.999] + [0.001 / 39] * 39).log()
    result = beam_search(
        certain, torch.tensor([PROMPT]).expand(2000, -1), draft=certain, width=1, draft_width=20, gamma=1,
        trie=Trie(torch.tensor([[code, 0] for code in range(40)])), verification="relaxed", seeds=range(2000),
    )  # fmt: skip
    assert (result.sequences[:, 0, 0] == 0).double().mean() == pytest.approx(0.999, abs=0.003)


# Stochastic beam search


@pytest.mark.parametrize("cut", [2, 4])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("items", [EQUAL, UNEQUAL], ids=["equal lengths", "any lengths"])
def test_sample_draws_whole_sequences_without_replacement_and_in_order(items, width, cut):
    """Ends of sequences must not share noise, nor one prefix's end with the end of a longer one, though all are one
    state of the trie. `cut` is max_new_tokens: sequences that go on there are drawn as one."""
    ended = items if items is EQUAL else [(*item, EOS) for item in items]
    eos = {} if items is EQUAL else {"eos_token_id": EOS}
    result, lists = search(6000, items, width=width, max_new_tokens=cut, verification="sample", **eos)
    probability = probabilities(TARGET_SEED, tuple(ended), renormalised=True)
    whole = {s: p for s, p in probability.items() if len(s) == cut or (len(s) < cut and s in ended)}
    assert_drawn_from(draws(whole, width), lists)
    assert (result.scores.diff() <= 0).all()
    log_probs = torch.tensor([[log(probability[sequence]) for sequence in each] for each in lists])
    torch.testing.assert_close(result.log_probs, log_probs, atol=1e-4, rtol=1e-4)


def perturbed(probability, trie, seed, prefix=(), score=0.0):
    """{sequence: score} of all of them, top down: a Gumbel for every child, given that the largest is the parent's."""
    children = [s for s in probability if s and s[:-1] == prefix]
    if not children:
        return {prefix: score}
    states = trie.walk(torch.tensor(children))[:, -1]
    noise = gumbel(torch.tensor([seed]), PERTURB, states[None])[0].tolist()
    own = {child: log(probability[child]) + g for child, g in zip(children, noise, strict=True)}
    largest, found = max(own.values()), {}
    for child, g in own.items():
        given = -log(exp(-score) - exp(-largest) + exp(-g))  # Kool et al. 2019, equation 9
        found |= perturbed(probability, trie, seed, child, given)
    return found


@pytest.mark.parametrize("gamma", [0, 2])
def test_sample_equals_perturbing_every_sequence(gamma):
    """No beam search at all: every item is scored, and the best are the list."""
    result, lists = search(20, EQUAL, width=4, draft_width=6, gamma=gamma, verification="sample")
    probability = probabilities(TARGET_SEED, tuple(EQUAL), renormalised=True)
    for seed, (items, scores) in enumerate(zip(lists, result.scores.tolist(), strict=True)):
        expected = perturbed(probability, Trie.from_sequences(EQUAL), seed)
        assert list(items) == sorted(expected, key=expected.get, reverse=True)[:4]
        assert scores == pytest.approx([expected[item] for item in items], abs=1e-3)


def opposed(target):
    """A draft that likes best what the target likes least."""
    draft = deepcopy(target)
    draft.lm_head.weight.data *= -50
    return draft


@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("lengths", [(4, 4), (2, 4)], ids=["equal lengths", "any lengths"])
@pytest.mark.parametrize("accepted", ["never", "sometimes", "always"])
def test_sample_gives_the_same_list_whatever_the_draft(accepted, lengths, gamma):
    """The draft perturbs by the same noise, so that it can be right: the target itself is, throughout."""
    target = tiny_llama(1, 1)
    drafts = {"never": opposed, "sometimes": lambda model: noisy_copy(model, 0.1), "always": lambda model: model}
    items = [item[: lengths[i % 2]] for i, item in enumerate(random_items(200).tolist())]
    ids, mask = random_prompts(30, 9)
    options = dict(trie=Trie.from_sequences(items), width=3, verification="sample", seeds=range(30))
    if lengths == (2, 4):
        options["eos_token_id"] = EOS
    own = beam_search(target, ids, mask, **options)
    result = beam_search(target, ids, mask, draft=drafts[accepted](target), draft_width=3, gamma=gamma, **options)
    assert torch.equal(result.sequences, own.sequences)
    assert torch.equal(result.lengths, own.lengths)
    for name in ("scores", "log_probs"):
        torch.testing.assert_close(getattr(result, name), getattr(own, name), atol=1e-4, rtol=1e-4)
    if lengths == (4, 4):  # a draft leaves ends to the target
        calls, fewest = result.target_calls.double(), -(-4 // (1 + gamma))
        if accepted == "sometimes":
            assert fewest < calls.mean() < 4
        else:
            assert (calls == {"never": 4, "always": fewest}[accepted]).all()


# Both


@pytest.mark.parametrize("verification", ["relaxed", "coupled", "sample"])
@pytest.mark.parametrize("gamma", [0, 1, 2])
def test_a_request_and_its_seed_give_the_same_list_in_any_batch(verification, gamma):
    """Whatever the others are, in whatever order, and however much further they have to go."""
    target, (ids, mask) = tiny_llama(1, 1), random_prompts(40, 9)
    ids[20:], mask[20:] = ids[:1], mask[:1]
    seeds = torch.arange(40) * 1000 - 7
    seeds[30:] = seeds[20:30]
    options = dict(
        trie=Trie(random_items(100)), width=2, draft=tiny_llama(7, 1), draft_width=4, gamma=gamma,
        verification=verification,
    )  # fmt: skip
    batch = beam_search(target, ids, mask, seeds=seeds.tolist(), **options)
    assert torch.equal(batch.sequences[30:], batch.sequences[20:30]), "same seed, same list"
    assert len(batch.sequences[20:30].unique(dim=0)) > 1, "another seed, another list"
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    mixed = beam_search(target, ids[order], mask[order], seeds=seeds[order].tolist(), **options)
    assert torch.equal(mixed.sequences, batch.sequences[order])
    for row in range(30):
        prompt = ids[row][mask[row].bool()][None]
        alone = beam_search(target, prompt, seeds=[seeds[row].item()], **options)
        assert torch.equal(alone.sequences[0], batch.sequences[row])
        assert alone.accepted[0].tolist() == [a for a in batch.accepted[row].tolist() if a >= 0]


# Refusals


@pytest.mark.parametrize(
    ("verifications", "change", "message"),
    [
        ("relaxed coupled sample", dict(trie=None, max_new_tokens=4), "takes a trie"),
        ("relaxed sample", dict(seeds=None), "pass seeds=, one integer a request, 2 here, not None"),
        ("relaxed sample", dict(seeds=[1, 2, 3]), "pass seeds=, one integer a request, 2 here, not .1, 2, 3"),
        ("relaxed sample", dict(logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.5)])), "no logits pro"),
        ("relaxed sample", dict(stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(9)])), "no stopping_criteri"),
        (
            "relaxed coupled",
            dict(trie=Trie.from_sequences(UNEQUAL), eos_token_id=EOS),
            "one length: pass max_new_tokens=1",
        ),
        ("sample", dict(length_penalty=1.0), "pass length_penalty=0"),
        ("sample", dict(early_stopping=True), "pass early_stopping=False"),
        ("relaxed", dict(seeds=[1, 1.5]), "seeds must be integers of 64 bits, not"),
        ("sample", dict(seeds=[1, 2**63]), "seeds must be integers of 64 bits, not"),
        ("sample", dict(seeds=7), "one integer a request, 2 here, not 7"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(verifications, change, message):
    for verification in verifications.split():
        options = dict(trie=Trie(random_items(20)), width=2, verification=verification, seeds=[1, 2]) | change
        with pytest.raises(ValueError, match=f"verification='{verification}'.* {message}"):
            beam_search(tiny_llama(1, 1), torch.tensor([[5, 6], [7, 8]]), **options)


# Noise


PURPOSES = (PERTURB, DRAFT, ACCEPT, RESIDUAL, TARGET)


def splitmix64(x):
    """The first number of a SplitMix64 generator that was seeded with x."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_noise_is_worked_out_by_splitmix64_so_that_a_seed_keeps_its_meaning():
    # As published with the generator, and at Rosetta Code.
    assert [splitmix64(seed) for seed in (0, 1234567)] == [0xE220A8397B1DCDAF, 6457827717110365317]
    seeds, states = [3, -1, 2**60 - 1], [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [0, 2**40]]]
    for purpose in PURPOSES:
        expected = [
            [[splitmix64(splitmix64((seed * 8 + purpose) % 2**64) ^ state) / 2**64 for state in row] for row in rows]
            for seed, rows in zip(seeds, states, strict=True)
        ]
        found = uniform(torch.tensor(seeds), purpose, torch.tensor(states))
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double), atol=1e-15, rtol=0)
        torch.testing.assert_close(gumbel(torch.tensor(seeds), purpose, torch.tensor(states)), -(-found.log()).log())


def many(noise):
    """Of 200 seeds and 200 states, for every purpose: (1000, 200)."""
    seeds = torch.arange(200)
    return torch.cat([noise(seeds, purpose, seeds.expand(200, -1)) for purpose in PURPOSES])


@pytest.mark.parametrize(
    ("noise", "distribution", "mean", "variance"),
    [(uniform, lambda x: x, 0.5, 1 / 12), (gumbel, lambda x: (-(-x).exp()).exp(), 0.577216, pi**2 / 6)],
    ids=["uniform", "gumbel"],
)
def test_noise_follows_its_distribution(noise, distribution, mean, variance):
    sample = many(noise).flatten()
    n = len(sample)
    assert sample.mean().item() == pytest.approx(mean, abs=4 * sqrt(variance / n))
    assert sample.var().item() == pytest.approx(variance, rel=0.02)
    off = (distribution(sample.sort().values) - (torch.arange(n) + 0.5) / n).abs().max().item()
    assert off * sqrt(n) < 2, "Kolmogorov and Smirnov: below 2 in 999 of 1000 cases"


def test_noise_is_never_0_or_1_where_gumbels_would_be_infinite():
    """Not even in these two states, where SplitMix64 gives 0 and 2**64 - 1 (found by running it backwards)."""
    states = torch.tensor([[-8941845932926284220, -3223976110786282492]])
    least, largest = uniform(torch.tensor([0]), PERTURB, states)[0].tolist()
    assert 0 < least < 1e-15 < 1 - 1e-15 < largest < 1


def test_seeds_purposes_and_states_share_no_noise():
    sample = many(uniform)
    assert len(sample.unique()) == sample.numel()
    for rows in (sample, sample.T):
        related = rows.corrcoef().fill_diagonal_(0).abs().max().item()
        assert related * sqrt(rows.shape[1]) < 6
