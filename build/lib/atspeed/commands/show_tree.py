"""Draw how one request is decoded: what was drafted, what the target accepted, what it added, round by round.

atspeed show-tree --output tree.svg

A small random target, a draft that resembles it and a random catalogue; --seed and --noise change them. The suffix of
--output says the format (.svg, .png, .pdf).
"""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, check_new, check_output

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FORMATS = (".svg", ".png", ".pdf")
LENGTH, CODES = 4, 8


def random_models(seed: int, noise: float) -> "tuple[LlamaForCausalLM, LlamaForCausalLM]":
    """A target, and a draft whose weights are the target's with `noise` (in standard deviations of each)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    target = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4 + LENGTH * CODES, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    draft = deepcopy(target)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += noise * weight.std() * torch.randn_like(weight)
    return target, draft


def main(
    output: str = "tree.svg",
    seed: int = 2,
    noise: float = 0.2,
    width: int = 3,
    draft_width: int = 8,
    gamma: int = 3,
    overwrite: bool = False,
) -> None:
    path = Path(output)
    if path.suffix not in FORMATS:
        raise UserError(f"--output {output} must end in {', '.join(FORMATS)}: the suffix says the format")
    check_output(path, file=True)
    check_new(path, overwrite, file=True)

    import torch

    from atspeed.recommend.request_tree import Node, draw_tree, request_tree
    from beamsd import Settings, Trie

    def label(node: Node) -> str:
        return f"<{'abcd'[node.level]}_{node.token - 4 - CODES * node.level}>"

    target, draft = random_models(seed, noise)
    items = torch.stack([torch.randint(4 + CODES * i, 4 + CODES * (i + 1), (200,)) for i in range(LENGTH)], -1)
    trie, prompt = Trie(items), torch.randint(4, 4 + LENGTH * CODES, (1, 6))
    settings = Settings(width=width, draft_width=draft_width, gamma=gamma, trie=trie)
    nodes = request_tree(target, draft, prompt, settings)
    calls = max(node.round for node in nodes.values())
    figure = draw_tree(
        nodes, label, f"{width} beams, {draft_width} drafted a level: {calls} target calls for {LENGTH} levels"
    )
    dated = {"Date": None} if path.suffix == ".svg" else None  # the same picture is the same file
    with atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], bbox_inches="tight", metadata=dated)
    print(f"{output}: {len(nodes)} nodes, {calls} target calls")
