"""Answers requests with vLLM's beam search, in an environment of its own.

Started as a script by `Peer`, which asks a line of JSON at a time and reads a line for each. It imports nothing of
this project. vLLM's beam search takes no trie: each level goes on with the 2 K best tokens of the whole vocabulary
after each of K beams, so it may give what is no item. Its prefix cache is on, as the search reads a level from the one
before; so a prompt that it has met, at another K or to warm up, is not read again.
"""

import argparse
import json
import os
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    for name in ("levels", "width", "length", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    flags = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes where errors go
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(flags.threads))

    import vllm
    from vllm.sampling_params import BeamSearchParams

    model = vllm.LLM(
        model=flags.target, dtype="float32", max_model_len=flags.length, max_num_seqs=max(64, flags.width),
        max_logprobs=2 * flags.width, enforce_eager=True, enable_prefix_caching=True,
    )  # fmt: skip
    tell(answers, {"vllm": vllm.__version__})
    for line in sys.stdin:
        asked = json.loads(line)
        how = BeamSearchParams(beam_width=asked["width"], max_tokens=flags.levels, ignore_eos=True, length_penalty=0.0)
        start = time.perf_counter()
        found = model.beam_search([{"prompt_token_ids": prompt} for prompt in asked["prompts"]], how)
        seconds = time.perf_counter() - start
        lists = [[beam.tokens[-flags.levels :] for beam in each.sequences] for each in found]
        requests = [{"sequences": sequences, "calls": flags.levels} for sequences in lists]
        tell(answers, {"seconds": seconds, "requests": requests})


def tell(answers, what: dict) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
