"""Draw how one request is decoded: what was drafted, what the target accepted, what it added, round by round.

python -m atspeed.tools.show_tree --output tree.svg

A small random target, a draft that resembles it and a random catalogue; --seed and --noise change them. The suffix of
--output says the format (.svg, .png, .pdf).
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.runtime.cli import run
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, check_new, check_output

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

    from beamsd import Settings, Trie

FORMATS = (".svg", ".png", ".pdf")
LENGTH, CODES = 4, 8
ACCEPTED, ADDED, UNUSED = "drafted, accepted and built upon", "added by the target", "drafted, not built upon"
COLOURS = {ACCEPTED: "#2a9d5c", ADDED: "#2f6fb3", UNUSED: "#c9c9c9"}


@dataclass
class Node:
    token: int
    parent: int | None  # slot; None under the prompt
    level: int
    round: int
    kind: str


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


def decode(
    target: "LlamaForCausalLM", draft: "LlamaForCausalLM", trie: "Trie", prompt: "torch.Tensor", settings: "Settings"
) -> dict[int, Node]:
    """Every node of the tree of one request, by its slot."""
    from beamsd import rounds

    mask = prompt.new_ones(prompt.shape)
    plan = settings.plan(target, draft, prompt, mask)
    nodes: dict[int, Node] = {}
    root = prompt.shape[1] - 1

    def add(slots: "torch.Tensor", tree, number: int, kind: str) -> None:
        for slot in slots[0].tolist():
            parent = int(tree.parents[0, slot])
            level = 0 if parent <= root else nodes[parent].level + 1
            nodes[slot] = Node(int(tree.tokens[0, slot]), parent if parent > root else None, level, number, kind)

    for number, done in enumerate(rounds(target, prompt, mask, plan, draft=draft), start=1):
        for level in done.levels:
            legal = ~level.beams.log_probs[0].isneginf()
            add(level.beams.nodes[:, legal], done.tree, number, UNUSED)
        add(done.beams.nodes, done.tree, number, ADDED)
        # What the target's beams stand on was accepted, as far as it was drafted.
        for slot in done.beams.nodes[0].tolist():
            while (slot := nodes[slot].parent) is not None:
                if nodes[slot].kind == UNUSED:
                    nodes[slot].kind = ACCEPTED
    return nodes


def positions(nodes: dict[int, Node]) -> dict[int | None, tuple[float, float]]:
    """A column a level; a leaf a row, in the order of the branches, and a parent in the middle of its children."""
    children: dict[int | None, list[int]] = {}
    for slot, node in nodes.items():
        children.setdefault(node.parent, []).append(slot)
    places: dict[int | None, tuple[float, float]] = {}
    row = 0

    def place(slot: int | None, level: int) -> float:
        nonlocal row
        below = [place(child, level + 1) for child in children.get(slot, [])]
        y = sum(below) / len(below) if below else float(row)
        row += not below
        places[slot] = (level, y)
        return y

    place(None, -1)
    return places


def draw(nodes: dict[int, Node], title: str, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    places = positions(nodes)
    rows = max(y for _, y in places.values()) + 1
    mpl.rcParams.update({"svg.hashsalt": "tree", "svg.fonttype": "none", "font.size": 8})
    figure, axes = plt.subplots(figsize=(10, 1.5 + 0.17 * rows))
    for slot, node in nodes.items():
        (x, y), (px, py) = places[slot], places[node.parent]
        used, colour = node.kind != UNUSED, COLOURS[node.kind]
        axes.plot([px + 0.11, x - 0.11], [py, y], color=colour, lw=1.3 if used else 0.6, zorder=used)
        code = node.token - 4 - CODES * node.level
        axes.text(
            x, y, f"<{'abcd'[node.level]}_{code}>  {node.round}", ha="center", va="center", fontsize=7,
            color="white" if used else "#555555",
            bbox={"boxstyle": "round,pad=0.15", "fc": colour if used else "white", "ec": colour},
        )  # fmt: skip
    box = {"boxstyle": "round,pad=0.3", "fc": "#333333", "ec": "none"}
    axes.text(*places[None], "prompt", ha="center", va="center", color="white", bbox=box)
    axes.set(xlim=(-1.4, LENGTH - 0.6), ylim=(rows - 0.3, -0.7), title=title)
    axes.axis("off")
    handles = [Line2D([], [], color=colour, lw=4, label=kind) for kind, colour in COLOURS.items()]
    axes.legend(handles=handles, loc="upper left", frameon=False, title="the number is the round")
    dated = {"Date": None} if path.suffix == ".svg" else None  # the same picture is the same file
    with atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], bbox_inches="tight", metadata=dated)
    plt.close(figure)


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

    from beamsd import Settings, Trie

    target, draft = random_models(seed, noise)
    items = torch.stack([torch.randint(4 + CODES * i, 4 + CODES * (i + 1), (200,)) for i in range(LENGTH)], -1)
    trie, prompt = Trie(items), torch.randint(4, 4 + LENGTH * CODES, (1, 6))
    settings = Settings(width=width, draft_width=draft_width, gamma=gamma, trie=trie)
    with torch.inference_mode():
        nodes = decode(target, draft, trie, prompt, settings)
    calls = max(node.round for node in nodes.values())
    draw(nodes, f"{width} beams, {draft_width} drafted a level: {calls} target calls for {LENGTH} levels", path)
    print(f"{output}: {len(nodes)} nodes, {calls} target calls")


if __name__ == "__main__":
    run(main)
