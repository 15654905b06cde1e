"""What SpecGR's tests share: a tiny random TIGER, items that share prefixes, and histories of different lengths."""

import torch

from specgr.data.codes import NOTHING, Codes
from specgr.networks.tiger import Tiger, TigerSettings

SIZES = (5, 6, 4)


def random_codes(n_items: int = 60, seed: int = 0, sizes: tuple[int, ...] = SIZES, digits: int = 8) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    return Codes.from_semantic(
        torch.stack([torch.randint(size, (n_items,), generator=generator) for size in sizes], -1), sizes, digits
    )


def random_tiger(codes: Codes, seed: int = 0) -> Tiger:
    """Weights large enough to make ties rare and what comes before matter."""
    torch.manual_seed(seed)
    settings = TigerSettings(
        codes.vocabulary_size, codes.levels, d_model=16, d_ff=32, layers=2, heads=2, d_kv=8, projection=8
    )
    tiger = Tiger(settings).eval()
    with torch.no_grad():
        for weight in tiger.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.5)
    return tiger


def random_histories(n_items: int, batch: int, length: int = 5, seed: int = 0) -> torch.Tensor:
    """(batch, length), each row shorter than the one before, the first as long as it may be."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(n_items, (batch, length), generator=generator)
    for row in range(batch):
        items[row, max(1, length - row) :] = NOTHING
    return items
