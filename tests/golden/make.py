"""Write the golden checkpoint and its lists anew, after a change of numerics that is meant.

    PYTHONPATH=code:tests python tests/golden/make.py

Says nothing about what is right, which the tests against `generate` do; it shows that numbers have changed.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from beamsd import Trie, beam_search
from conftest import noisy_copy, random_items, random_prompts, tiny_llama

HERE = Path(__file__).parent
CASES = {
    "strict": {},
    "sample": {"verification": "sample", "seeds": [1, 2, 3]},
    "relaxed": {"verification": "relaxed", "seeds": [1, 2, 3]},
}


def lists_of(target, draft):
    """The lists of every case: sequences, and scores to 4 decimals."""
    ids, mask = random_prompts(3, 6)
    trie, found = Trie(random_items(30)), {}
    for name, settings in CASES.items():
        result = beam_search(
            target, ids, mask, width=5, trie=trie, draft=draft, draft_width=8, gamma=3, **settings
        )  # fmt: skip
        scores = [[round(score, 4) for score in row] for row in result.scores.tolist()]
        found[name] = {"sequences": result.sequences.tolist(), "scores": scores, "accepted": result.accepted.tolist()}
    return found


def load():
    """The target and the draft."""
    return (
        AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval() for name in ("target", "draft")
    )


if __name__ == "__main__":
    target = tiny_llama(0, layers=1, hidden=16)
    target.save_pretrained(HERE / "target")
    noisy_copy(target, 0.2).save_pretrained(HERE / "draft")
    (HERE / "lists.json").write_text(json.dumps(lists_of(*load())) + "\n")
