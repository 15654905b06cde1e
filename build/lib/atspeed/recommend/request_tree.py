"""The token tree of one request, as a picture: what was drafted, what the target accepted and added, round by round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from beamsd import Settings, rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
    from transformers import PreTrainedModel

    from beamsd import Tree

ACCEPTED, ADDED, UNUSED = "drafted, accepted and built upon", "added by the target", "drafted, not built upon"
COLOURS = {ACCEPTED: "#2a9d5c", ADDED: "#2f6fb3", UNUSED: "#c9c9c9"}


@dataclass
class Node:
    """A token of the tree."""

    token: int
    parent: int | None  # slot; None under the prompt
    level: int
    round: int
    kind: str


@torch.inference_mode()
def request_tree(
    target: PreTrainedModel, draft: PreTrainedModel | None, prompt: Tensor, settings: Settings
) -> dict[int, Node]:
    """Every node of the tree of one request, by its slot. prompt: (1, P) token ids."""
    mask = prompt.new_ones(prompt.shape)
    plan = settings.plan(target, draft, prompt, mask)
    nodes: dict[int, Node] = {}
    root = prompt.shape[1] - 1

    def add(slots: Tensor, tree: Tree, number: int, kind: str) -> None:
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


def draw_tree(nodes: dict[int, Node], label: Callable[[Node], str], title: str = "") -> Figure:
    """A picture of `request_tree`'s nodes, a column a level. label: what is written for a node's token."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    places = _positions(nodes)
    rows = max(y for _, y in places.values()) + 1
    mpl.rcParams.update({"svg.hashsalt": "tree", "svg.fonttype": "none", "font.size": 8})
    figure = Figure(figsize=(10, 1.5 + 0.17 * rows))
    axes = figure.subplots()
    for slot, node in nodes.items():
        (x, y), (px, py) = places[slot], places[node.parent]
        used, colour = node.kind != UNUSED, COLOURS[node.kind]
        axes.plot([px + 0.11, x - 0.11], [py, y], color=colour, lw=1.3 if used else 0.6, zorder=used)
        axes.text(
            x, y, f"{label(node)}  {node.round}", ha="center", va="center", fontsize=7,
            color="white" if used else "#555555",
            bbox={"boxstyle": "round,pad=0.15", "fc": colour if used else "white", "ec": colour},
        )  # fmt: skip
    box = {"boxstyle": "round,pad=0.3", "fc": "#333333", "ec": "none"}
    axes.text(*places[None], "prompt", ha="center", va="center", color="white", bbox=box)
    levels = max(node.level for node in nodes.values()) + 1
    axes.set(xlim=(-1.4, levels - 0.6), ylim=(rows - 0.3, -0.7), title=title)
    axes.axis("off")
    handles = [Line2D([], [], color=colour, lw=4, label=kind) for kind, colour in COLOURS.items()]
    axes.legend(handles=handles, loc="upper left", frameon=False, title="the number is the round")
    return figure


def _positions(nodes: dict[int, Node]) -> dict[int | None, tuple[float, float]]:
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
