"""Teacher data: the target's own top-K beams for every prompt, and its log-probabilities along them.

Of a beam's position is stored what the alignment loss compares there, by default the trie's legal children, once for
every distinct prefix of a prompt's beams: normalised over the full vocabulary, in float16. docs/teacher-data.md has the
format.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from atspeed.data.compared import ComparedTokens
from atspeed.data.shards import claim_shard, clear_claims, save_shard, shard_path
from atspeed.data.teacher_data import FORMAT, TRIE, Manifest, TeacherPlan
from atspeed.prompts import EncodedSamples, left_pad
from atspeed.tree_logits import tree_logits
from beamsd import Prefix, Trace, Trie, beam_search


@torch.inference_mode()
def teach(
    model: PreTrainedModel,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    plan: TeacherPlan,
    prefix: Prefix | None = None,
) -> dict[str, Tensor]:
    """One micro-batch of teacher data, on the CPU. prefix: what all prompts begin with.

    beams (B, K, L): token ids; scores (B, K) float32, -inf where the trie holds fewer than K; log_probs (flat,
    float16): prompt by prompt and prefix by prefix, those of `plan.alignment_over`, by token; counts (B,) long: how
    many are a prompt's; starts (B, K, L): where among them those of the prefix before each token begin.
    """
    ids, mask = (tensor.to(model.device) for tensor in left_pad(prompts))
    trace = Trace()
    found = beam_search(model, ids, mask, width=plan.beam_size, trie=trie, drafter="none", prefix=prefix, trace=trace)
    beams, cells = found.sequences, found.ranks.clamp(min=0)
    states = torch.stack(trace.states, -1).gather(1, cells)  # (B, K, L), before each token
    states = states.masked_fill(~found.scores.isfinite()[..., None], trie.dead)
    compared = ComparedTokens(plan.alignment_over, trie)
    if plan.alignment_over == TRIE:  # the search itself has said it
        said = torch.stack(trace.log_probs, 2)  # (B, K, L, C)
        said = said.gather(1, cells[..., None].expand_as(said))
    else:
        said = compared.log_probs(tree_logits(model, ids, mask, beams[:, 0], beams), beams)
    # Beams of one prompt that share a prefix share what follows: keep one of each.
    row, cells = torch.arange(len(ids), device=ids.device), torch.arange(beams.numel(), device=ids.device)
    keys, inverse = (row[:, None, None] * (trie.dead + 1) + states).unique(return_inverse=True)
    keeper = torch.empty_like(keys).scatter_(0, inverse.flatten(), cells)
    owner, real = keys // (trie.dead + 1), compared.real(beams).expand_as(said).flatten(0, 2)[keeper]
    real = real & (keys % (trie.dead + 1) != trie.dead)[:, None]
    log_probs, sizes = said.flatten(0, 2)[keeper][real], real.sum(-1)
    counts = torch.zeros_like(row).index_add_(0, owner, sizes)
    starts = sizes.cumsum(0) - sizes - (counts.cumsum(0) - counts)[owner]
    taught = {
        "beams": _narrow(beams, model.config.vocab_size),
        "scores": found.scores,
        "log_probs": log_probs.half(),
        "counts": counts,
        "starts": _narrow(starts[inverse], beams[0].numel() * said.shape[-1]),
    }
    return {name: tensor.cpu() for name, tensor in taught.items()}


def _narrow(tensor: Tensor, most: int) -> Tensor:
    return tensor.to(torch.int16 if most < 2**15 else torch.int32)


@torch.inference_mode()
def true_item(model: PreTrainedModel, prompts: Sequence[Sequence[int]], items: Tensor) -> Tensor:
    """The target's log-probabilities (B, L, V) float16 of the vocabulary, before each token of the true item (B, L)."""
    ids, mask = (tensor.to(model.device) for tensor in left_pad(prompts))
    logits = tree_logits(model, ids, mask, items.to(model.device)).for_item()
    return logits.float().log_softmax(-1).half().cpu()


def teach_shard(
    model: PreTrainedModel, trie: Trie, encoded: EncodedSamples, plan: TeacherPlan, batch_size: int
) -> dict[str, Tensor]:
    """What `teach` says of all these prompts, as a shard holds it: offsets (n,) long, where in log_probs each prompt
    begins, in place of counts; with `full_vocabulary` item_logits (n, L, V), see `true_item`."""
    lengths = [len(prompt) for prompt in encoded.prompts]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)  # little padding; the most memory first
    prefix, parts = Prefix.of(encoded.prompts), []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        prompts = [encoded.prompts[i] for i in chosen]
        part = teach(model, trie, prompts, plan, prefix)
        if plan.full_vocabulary:
            part["item_logits"] = true_item(model, prompts, encoded.items[chosen])
        parts.append(part)
    shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    runs, back = shard.pop("log_probs").split(shard["counts"].tolist()), torch.tensor(order).argsort()
    shard = {name: tensor[back] for name, tensor in shard.items()}
    counts = shard.pop("counts")
    return shard | {"log_probs": torch.cat([runs[i] for i in back.tolist()]), "offsets": counts.cumsum(0) - counts}


def prepare(folder: Path, manifest: Manifest) -> None:
    """Check all shards of an earlier run. Call it on one process, before any writes.

    Raises UserError for a shard that is damaged or of another run.
    """
    clear_claims(folder)
    for shard in range(manifest.n_shards):
        if shard_path(folder, shard, manifest.n_shards).is_file():
            manifest.check(folder, shard, "start again")


def write_shards(
    folder: Path, model: PreTrainedModel, trie: Trie, encode: Callable[[range], EncodedSamples], manifest: Manifest,
    batch_size: int, advance: Callable[[int], object] = lambda prompts: None,
) -> None:  # fmt: skip
    """Write the missing shards one at a time, skipping those claimed by another process.

    So no process waits longer than a shard for the others, whatever their number and speed. encode: the samples of
    these numbers; memory grows with a shard, not with the samples. advance: is told
    how many more prompts have their shard.
    """
    for shard in range(manifest.n_shards):
        rows, path = manifest.rows(shard), shard_path(folder, shard, manifest.n_shards)
        if not path.is_file() and claim_shard(path):
            save_shard(path, teach_shard(model, trie, encode(rows), manifest.plan, batch_size), manifest.origin(shard))
        advance(len(rows))


def finish(folder: Path, manifest: Manifest) -> dict:
    """The facts for the next stage, with the hash of every shard. Call it on one process, after all have written.

    Raises UserError if a shard is not there, as on nodes that do not write to the same disk.
    """
    fix = "all processes must write to one file system; then start again"
    hashes = [manifest.check(folder, shard, fix, contents=False) for shard in range(manifest.n_shards)]
    clear_claims(folder)
    return {"format": FORMAT, **asdict(manifest), "shards": hashes}
