"""Counter-based noise: a number depends on a request's seed and a trie state only, never on batch, order or device.

So draft and target perturb the same prefix by the same noise, and a request gives the same list in any batch.
"""

from torch import Tensor

# What a number is for: two purposes never share noise.
PERTURB, DRAFT, ACCEPT, RESIDUAL, TARGET = range(5)


def uniform(seeds: Tensor, purpose: int, states: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float64 (B, ...), for `states` (B, ...) of requests with `seeds` (B,) long."""
    rows = _mix(seeds * 8 + purpose).view(-1, *[1] * (states.dim() - 1))
    # 52 bits and a half: 53 would round up to 1, whose Gumbel number is infinite.
    return (_shift(_mix(rows ^ states), 12).double() + 0.5) * 2.0**-52


def gumbel(seeds: Tensor, purpose: int, states: Tensor) -> Tensor:
    """Standard Gumbel numbers, float64; the arguments are those of `uniform`."""
    return -(-uniform(seeds, purpose, states).log()).log()


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: torch's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits that looks random. x: long, overflow wraps."""
    x = x - 0x61C8864680B583EB
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)
