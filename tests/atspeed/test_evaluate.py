"""The check behind the table: it notices a wrong list, a wrong score, an item that does not exist."""

import json
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch

from atspeed.benchmark import runner
from atspeed.benchmark.methods import BASELINE, GAMMA, GENERATE, SPECULATIVE, check_fit, check_widths, make_methods
from atspeed.benchmark.report import (
    SHORT,
    items_of_beams,
    recommendations,
    save_benchmark,
    save_report,
    summarise,
    verdict,
)
from atspeed.benchmark.runner import MethodBenchmark, Record, in_float64
from atspeed.benchmark.waits import save_waits, waits
from conftest import VOCABULARY, random_items, tiny_llama
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import Sample
from genrec.data.item_numbers import RawNames
from genrec.reports.tables import to_markdown
from genrec.runtime.errors import UserError


@pytest.fixture
def bench():
    items = random_items(60)
    return MethodBenchmark(
        (tiny_llama(1, 2), tiny_llama(7, 1)), items, partial(make_methods, items=items, draft_width=12, gamma=3)
    )


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, VOCABULARY, (3 + i,), generator=generator).tolist() for i in range(5)]


def run(bench, prompts):
    return bench.run(prompts, range(5), (1, 4), batch_size=2, warmup=1)


def test_every_request_is_recorded_for_every_method_and_k(bench, prompts):
    records = run(bench, prompts)
    assert len(records) == 5 * 2 * 3
    assert {(r.request, r.width, r.method) for r in records} == {
        (i, k, m) for i in range(5) for k in (1, 4) for m in (GENERATE, BASELINE, SPECULATIVE)
    }
    assert not any(r.tie for r in records)
    for r in records:
        assert r.seconds > 0
        assert len(r.sequences) == r.width
        assert (r.accepted is not None) == (r.method == SPECULATIVE)
        assert r.target_calls == 4 or r.method == SPECULATIVE


def spoil(bench, change, in_float64=False):
    """Have speculative decoding give something else."""
    right = bench.methods[SPECULATIVE]

    def wrong(*args):
        return change(right.decode(*args))

    bench.methods[SPECULATIVE] = replace(right, decode=wrong)
    if in_float64:
        bench._double = bench.methods


@pytest.mark.parametrize(
    ("change", "in_float64", "message"),
    [
        (lambda lists: replace(lists, sequences=lists.sequences.flip(1)), True, "the lists differ, in float64 too"),
        (lambda lists: replace(lists, scores=lists.scores + 0.01), True, "other scores"),
        (lambda lists: replace(lists, sequences=lists.sequences + 1), False, "not in the catalogue"),
    ],
)
def test_what_is_wrong_fails_loudly(bench, prompts, change, in_float64, message):
    spoil(bench, change, in_float64)
    with pytest.raises(RuntimeError, match=message):
        run(bench, prompts)


CHANGES = [
    lambda lists: replace(lists, sequences=lists.sequences.flip(1)),
    lambda lists: replace(lists, scores=lists.scores + 0.01),
]


@pytest.mark.parametrize(("change", "widths"), [(CHANGES[0], {4}), (CHANGES[1], {1, 4})], ids=["order", "scores"])
def test_a_difference_that_float64_does_not_confirm_is_counted_as_a_tie(bench, prompts, change, widths):
    spoil(bench, change)
    ties = [r for r in run(bench, prompts) if r.tie]
    assert {r.width for r in ties} == widths
    assert len(ties) == 5 * 3 * len(widths)
    assert all(r.settled for r in ties)


def test_models_too_large_for_float64_end_no_run(bench, prompts, monkeypatch):
    spoil(bench, CHANGES[0])
    monkeypatch.setattr(runner, "free_memory", lambda: 1000)
    records = run(bench, prompts)
    assert {r.width for r in records if not r.settled} == {4}
    assert verdict(records, exact=True).endswith("0 differ by a tie in float32; 5 differ, in items or scores, and need "
                                                 "more memory to be decoded in float64")  # fmt: skip


def test_the_copy_in_float64_shares_nothing_and_leaves_the_model_as_it_was():
    model = tiny_llama(1, 1)
    copy, ids = in_float64(model), torch.tensor([[3, 5, 7]])
    assert {each.dtype for each in (*copy.parameters(), *copy.buffers())} == {torch.float64}
    assert {each.dtype for each in (*model.parameters(), *model.buffers())} == {torch.float32}
    assert not {each.data_ptr() for each in copy.parameters()} & {each.data_ptr() for each in model.parameters()}
    torch.testing.assert_close(copy(ids).logits.float(), model(ids).logits, atol=1e-5, rtol=1e-5)


def test_lists_are_compared_without_tf32(bench, prompts):
    """The environment of some images switches it on (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)."""
    products, seen = torch.backends.cuda.matmul, []
    spoil(bench, lambda lists: seen.append(products.fp32_precision) or lists)
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        run(bench, prompts)
        assert products.fp32_precision == "tf32", "the setting is the user's"
    finally:
        products.fp32_precision = before
    assert set(seen) == {"ieee"}


def test_the_table_sums_up_the_records(bench, prompts, tmp_path):
    items = random_items(60)
    items_of = {tuple(map(str, item)): [i] for i, item in enumerate(items.tolist())}
    records = run(bench, prompts)
    best = items_of[tuple(map(str, records[0].sequences[0]))][0]
    samples = [Sample(0, (), (best,)), *(Sample(u, (), (-1,)) for u in range(1, 5))]
    table = summarise(records, samples, items_of, {t: str(t) for t in range(VOCABULARY)})
    assert len(table) == 6
    assert set(table["users"]) == {5}
    assert (table.loc[table["method"] == GENERATE, "speed-up"] == 1).all()
    assert table["Recall@1"].tolist() == pytest.approx([0.2] * 6)
    assert "Recall@5" not in table.columns, "nothing is claimed beyond K"
    speculative = [r for r in records if (r.method, r.width) == (SPECULATIVE, 4)]
    row = table[(table["method"] == SPECULATIVE) & (table["K"] == 4)].iloc[0]
    assert row["target calls"] == pytest.approx(sum(r.target_calls for r in speculative) / 5)
    assert row["accepted levels"] == pytest.approx(sum(r.accepted for r in speculative) / 5)
    save_report(tmp_path, table, "five users")
    assert (tmp_path / "results.png").stat().st_size > 10_000
    lines = to_markdown(table, SHORT).splitlines()
    assert len({len(line) for line in lines}) == 1, "the table is aligned"
    assert (tmp_path / "results.md").read_text().startswith("five users\n\n| method")


def test_a_person_waits_for_the_whole_batch_and_generate_is_compared_at_its_best(tmp_path):
    """By hand, K 5: `generate` does most a second, 4, at batch 8, where gamma 0 does 20."""
    ms = {1: {GENERATE: 500.0, BASELINE: 100.0}, 8: {GENERATE: 250.0, BASELINE: 50.0}}
    for batch, of_method in ms.items():
        rows = [
            {
                "method": method, "K": 5, "ms": each, "p95 ms": each, "p99 ms": 2 * each, "requests/s": 1e3 / each,
                "speed-up": of_method[GENERATE] / each, "over gamma 0": of_method[BASELINE] / each, "target calls": 4.0,
                "accepted levels": None, "target tokens": 90.0, "draft tokens": 0.0, "peak MB": 1.0,
            }
            for method, each in of_method.items()
        ]  # fmt: skip
        save_benchmark(tmp_path, f"batch-{batch}-float32", pd.DataFrame(rows), "made up", "")
    table = waits(tmp_path, "float32")
    save_waits(tmp_path, table, "made up", "waits")
    assert table["batch"].tolist() == [1, 1, 8, 8]
    assert table["p50 ms"].tolist() == [500, 100, 2000, 400]
    assert table["p99 ms"].tolist() == [1000, 200, 4000, 800]
    assert table["requests/s"].tolist() == [2, 10, 4, 20]
    assert table["over best generate"].tolist() == [0.5, 2.5, 1, 5]
    assert (tmp_path / "waits.png").stat().st_size > 10_000
    assert "| gamma 0  | 5 |     8 |" in (tmp_path / "waits.md").read_text()


def test_a_stop_list_takes_its_items_out_of_the_ranking_and_nothing_else(prompts):
    """As wide as there are identifiers, beam search ranks them all: what is left keeps its order, `generate` too."""
    rows = random_items(60).tolist()
    catalogue = Catalogue({item: tuple(map(str, row)) for item, row in enumerate([*rows, rows[7], rows[9]])})
    models, tokens = (tiny_llama(1, 2), tiny_llama(7, 1)), {t: str(t) for t in range(VOCABULARY)}

    def ranking(served):
        items = torch.tensor([list(map(int, identifier)) for identifier in served.identifiers.values()])
        bench = MethodBenchmark(models, items, partial(make_methods, items=items, draft_width=len(rows), gamma=3))
        records = bench.run(prompts[:1], range(1), (len(served.items_of),), batch_size=1, warmup=0)
        return [items_of_beams(record.sequences, served.items_of, tokens) for record in records]

    whole, *_ = ranking(catalogue)
    assert sorted(whole) == list(range(len(rows) + 2))
    stopped = {whole[0], whole[5], 7, len(rows) + 1}  # 7 shares with the last but one, which stays; the last with 9
    for left in ranking(catalogue.without(stopped)):
        assert left == [item for item in whole if item not in stopped]


def test_sizes_that_cannot_be_compared_are_refused():
    check_widths((1, 40), 40)
    with pytest.raises(UserError, match="--draft_beam_size 40: must be at least 50, the largest of --run_beam_sizes"):
        check_widths((1, 50), 40)


def test_the_default_gamma_is_for_catalogues_of_any_depth():
    catalogue = Catalogue({1: ("a", "b"), 2: ("a", "c")})
    check_fit(catalogue, "run_beam_sizes", 2, gamma=GAMMA)
    with pytest.raises(UserError, match="--gamma 4: must be at most 2, the levels"):
        check_fit(catalogue, "run_beam_sizes", 2, gamma=4)


def test_recommended_items_have_their_raw_ids_where_the_data_set_has_them(tmp_path):
    record = Record(0, "gamma 0", 2, [[7, 9], [7, 8]], 0.1, 2, None, None, None)
    samples, tokens = [Sample(4, (1,), (2,))], {7: "<a>", 8: "<b>", 9: "<c>"}
    items_of = {("<a>", "<c>"): [0, 2], ("<a>", "<b>"): [1]}
    without = {"user": 4, "items": [0, 2, 1], "scores": None}
    assert json.loads(recommendations([record], samples, items_of, tokens)) == without
    assert RawNames.of(tmp_path) is None
    pd.DataFrame({"user": range(5), "raw_id": list("vwxyz")}).to_parquet(tmp_path / "users.parquet")
    pd.DataFrame({"item": range(3), "raw_id": ["B1", "B2", "B3"]}).to_parquet(tmp_path / "items.parquet")
    assert json.loads(recommendations([record], samples, items_of, tokens, RawNames.of(tmp_path))) == without | {
        "raw_user": "z", "raw_items": ["B1", "B3", "B2"],
    }  # fmt: skip


def test_items_that_share_an_identifier_share_its_score():
    record = Record(0, "gamma 0", 2, [[7, 9], [7, 8]], 0.1, 2, None, None, None, scores=[-1.234567, -2.5])
    items_of = {("<a>", "<c>"): [0, 2], ("<a>", "<b>"): [1]}
    line = json.loads(recommendations([record], [Sample(4, (1,), (2,))], items_of, {7: "<a>", 8: "<b>", 9: "<c>"}))
    assert line == {"user": 4, "items": [0, 2, 1], "scores": [-1.2346, -1.2346, -2.5]}
