"""Answers requests with the released BeamSD, in an environment of its own: transformers 4.41 to 4.44, numpy below 2.

Started as a script by `Peer`, which asks a line of JSON at a time and reads a line for each. It imports
nothing of this project, whose package `atspeed` has the name of BeamSD's.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("beamsd", "target", "draft", "items"):
        parser.add_argument(f"--{name}", required=name != "draft")
    parser.add_argument("--threads", type=int, required=True)
    flags = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes where errors go
    torch.set_num_threads(flags.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sys.path[0] = flags.beamsd  # in place of this file's folder
    beamsd = importlib.import_module("atspeed.beamsd")
    target = load(flags.target, device)
    draft = load(flags.draft, device) if flags.draft else None
    children = children_of(json.loads(Path(flags.items).read_text()))
    calls = Calls(target)
    tell(answers, {"transformers": transformers.__version__, "torch": torch.__version__})
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = asked.pop("prompts")
        requests = [answer(beamsd, target, draft, children, calls, prompt=prompt, **asked) for prompt in prompts]
        tell(answers, {"seconds": sum(each["seconds"] for each in requests), "requests": requests})


class Calls:
    """Counts the forwards of a model."""

    def __init__(self, model: torch.nn.Module):
        self.count = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1


def load(folder: str, device: torch.device) -> "transformers.LlamaForCausalLM":
    """A LLaMA that transformers 5 has saved: its rotary settings have other names there."""
    said = json.loads((Path(folder) / "config.json").read_text())
    rope = said.pop("rope_parameters", None) or {}
    if said.get("model_type") != "llama" or rope.get("rope_type", "default") != "default":
        sys.exit(f"{folder}: BeamSD is compared on LLaMA models with plain rotary positions")
    theta = rope.get("rope_theta", said.pop("rope_theta", 10000.0))
    known = {k: v for k, v in said.items() if k not in ("dtype", "torch_dtype", "use_cache", "rope_scaling")}
    config = transformers.LlamaConfig(**known, rope_theta=theta, use_cache=True)
    config._attn_implementation = "sdpa"
    model = transformers.LlamaForCausalLM(config)
    weights = {}
    for file in sorted(Path(folder).glob("model*.safetensors")):
        weights.update(load_file(file))
    lacking = model.load_state_dict(weights, strict=False).missing_keys
    if [name for name in lacking if not (name == "lm_head.weight" and config.tie_word_embeddings)]:
        sys.exit(f"{folder}: lacks the weights {lacking}")
    model.tie_weights()
    return model.float().to(device).eval()


def children_of(items: list) -> dict:
    """The tokens that may follow each prefix."""
    children: dict = {}
    for item in items:
        for depth in range(len(item)):
            children.setdefault(tuple(item[:depth]), set()).add(item[depth])
    return {prefix: sorted(tokens) for prefix, tokens in children.items()}


@torch.no_grad()
def answer(beamsd, target, draft, children, calls, method, prompt, width, draft_width, gamma):
    """One request. Its seconds are those of the decoding alone."""
    device, length = target.device, max(map(len, children)) + 1
    ids = torch.tensor([prompt], device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    anything = children[()][:1]

    def allowed(_, sequence):
        return children.get(tuple(sequence[len(prompt) :].tolist()), anything)

    calls.count, accepted = 0, None
    synchronize(device)
    start = time.perf_counter()
    if method == "generate":
        found = target.generate(
            **inputs, num_beams=width, num_return_sequences=width, max_new_tokens=length, do_sample=False,
            length_penalty=1.0, early_stopping=False, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
            prefix_allowed_tokens_fn=allowed,
        )  # fmt: skip
        sequences = found.sequences
    elif method == "tree":
        found = beamsd.beam_search_by_TreeAttn(
            target, inputs, max_new_tokens=length, beam_size=width, prefix_allowed_tokens_fn=allowed
        )
        sequences = found["beam_sequences"]
    else:
        found = beamsd.beam_search_by_SD(
            target, draft, inputs, max_new_tokens=length, gamma=gamma, beam_size=width, draft_beam_size=draft_width,
            prefix_allowed_tokens_fn=allowed,
        )  # fmt: skip
        sequences = found["beam_sequences"]
        accepted = found["total_accept_steps"] / calls.count
    synchronize(device)
    return {
        "seconds": time.perf_counter() - start,
        "sequences": sequences[:, len(prompt) :].tolist(),
        "calls": calls.count,
        "accepted": accepted,
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tell(answers, what: dict) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
