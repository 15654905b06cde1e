"""Selection and stage 4 where attention with a mask and without one rounds as two kernels of a GPU do."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator

from atspeed.benchmark.methods import BASELINE, GENERATE, HYBRID, SPECULATIVE, TRIE, make_methods
from atspeed.benchmark.runner import MethodBenchmark
from atspeed.training.selection import Selection
from conftest import noisy_copy, random_items, tiny_llama


@pytest.mark.parametrize("kernel_noise", ["bfloat16"], indirect=True)
def test_a_draft_in_mixed_precision_is_measured_as_it_is_without(kernel_noise, taught):
    """The first evaluation of stage 3 on a GPU."""
    target, trie, samples = taught
    selection, draft = Selection(target, trie, samples.prompts[:6], width=4), noisy_copy(target, 0.2)
    expected = selection.measure(draft, batch_size=3)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    wrapped = accelerator.unwrap_model(accelerator.prepare(noisy_copy(target, 0.2)))
    torch.testing.assert_close(selection.measure(wrapped, batch_size=3), expected)


@pytest.mark.parametrize("kernel_noise", ["bfloat16"], indirect=True)
def test_lists_that_differ_by_rounding_end_no_measurement(kernel_noise, taught):
    _, _, samples = taught
    items, names = random_items(200), (GENERATE, BASELINE, SPECULATIVE, TRIE, HYBRID)
    models = [model.bfloat16() for model in (tiny_llama(1, 2), tiny_llama(7, 1))]
    bench = MethodBenchmark(models, items, partial(make_methods, items=items, draft_width=20, gamma=3, names=names))
    records = bench.run(samples.prompts[:12], range(12), (8,), batch_size=3, warmup=0)
    lists = [{tuple(map(tuple, r.sequences)) for r in records if r.request == request} for request in range(12)]
    assert max(map(len, lists)) > 1, "the noise is to matter"
    assert len(records) == 12 * len(names)
