"""Vector quantisation: k-means, Sinkhorn's uniform assignment, and resolution of shared identifiers.

Codes are (n, L) long: one code per level for each of n items. Items with equal codes *share* an identifier.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

CELLS = 2**24  # elements of a distance matrix in memory at once


def distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Returns squared Euclidean distances (…, n, k), at least 0, of points (…, n, d) to centroids (k, d)."""
    squares = points.square().sum(-1, keepdim=True) + centroids.square().sum(-1)
    return (squares - 2 * points @ centroids.T).clamp(min=0)


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Returns indices (n,) long of the centroids (k, d) nearest to points (n, d); the first of equally near ones."""
    parts = points.split(max(1, CELLS // len(centroids)))
    return torch.cat([distances(part, centroids).argmin(-1) for part in parts])


def kmeans(points: Tensor, k: int, *, iterations: int = 25, seed: int = 0) -> Tensor:
    """Returns k-means centroids (k, d) of points (n, d): k-means++, then at most `iterations` of Lloyd's algorithm.

    A cluster that becomes empty restarts at the point farthest from its centroid. With fewer distinct points than k,
    some centroids are equal. The same seed gives the same centroids.
    """
    centroids, labels = _plus_plus(points, k, seed), None
    for _ in range(iterations):
        before, labels = labels, nearest(points, centroids)
        if before is not None and torch.equal(before, labels):
            break
        sizes = torch.bincount(labels, minlength=k)
        members = one_hot(labels, k).to(points.dtype)  # a matrix product sums in a fixed order on any device
        centroids = torch.where((sizes > 0)[:, None], members.T @ points / sizes.clamp(min=1)[:, None], centroids)
        empty = (sizes == 0).nonzero()[:, 0]
        far = (points - centroids[labels]).square().sum(-1).topk(min(len(empty), len(points))).indices
        centroids[empty[: len(far)]] = points[far]
    return centroids


def _plus_plus(points: Tensor, k: int, seed: int) -> Tensor:
    """Draws k points, each with a probability proportional to its squared distance to the nearest one drawn before."""
    random = torch.rand(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(points.device)
    chosen, squares = [points[(random[0] * len(points)).long()]], points.square().sum(-1)
    closest = torch.full((len(points),), torch.inf, device=points.device, dtype=points.dtype)
    for i in range(1, k):
        closest = closest.minimum((squares - 2 * points @ chosen[-1] + chosen[-1].square().sum()).clamp(min=0))
        upto = closest.double().cumsum(0)
        row = torch.searchsorted(upto, random[i] * upto[-1], right=True)
        chosen.append(points[row.clamp(max=len(points) - 1)])
    return torch.stack(chosen)


def sinkhorn(cost: Tensor, epsilon: float, iterations: int = 50, forbidden: Tensor | None = None) -> Tensor:
    """Returns the plan (…, n, k) that assigns n points uniformly to k codes at low cost (…, n, k).

    Entropic optimal transport (Cuturi 2013) as in LC-Rec (Zheng et al., ICDE 2024): cost is scaled to -1 … 1, rows sum
    to 1, columns to n / k. epsilon: the smaller, the closer to the cheapest assignment. forbidden (…, k): codes that
    are not assigned; their columns are 0 and the others share the points.
    """
    cost = cost.double()
    forbidden = torch.zeros_like(cost[..., 0, :], dtype=torch.bool) if forbidden is None else forbidden
    low = cost.masked_fill(forbidden[..., None, :], torch.inf).amin((-2, -1), keepdim=True)
    high = cost.masked_fill(forbidden[..., None, :], -torch.inf).amax((-2, -1), keepdim=True)
    amplitude = (high - low) / 2 + 1e-5
    cost = cost.masked_fill(forbidden[..., None, :], torch.inf)
    allowed = (~forbidden).sum(-1)[..., None, None].clamp(min=1)
    share, tiny = cost.shape[-2] / allowed, 1e-300  # n / tiny is finite too
    plan = torch.exp((cost.amin(-1, keepdim=True) - cost) / amplitude / epsilon).nan_to_num()
    for _ in range(iterations):
        plan = plan * (share / plan.sum(-2, keepdim=True).clamp(min=tiny))
        plan = plan / plan.sum(-1, keepdim=True).clamp(min=tiny)
    return plan


def shared(codes: Tensor) -> Tensor:
    """Returns (n,) bool: whether another item has the same codes (n, L)."""
    _, group, sizes = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    return sizes[group] > 1


def collision_rate(codes: Tensor) -> float:
    """Returns the collision rate of codes (n, L): (items - distinct identifiers) / items."""
    return 1 - len(torch.unique(codes, dim=0)) / len(codes)


def identification_digits(codes: Tensor) -> Tensor:
    """Numbers the items with the same codes (n, L) from 0, in their order: (n,) long."""
    _, group, sizes = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    order, start = group.argsort(stable=True), sizes.cumsum(0) - sizes
    digits = torch.empty_like(group)
    digits[order] = torch.arange(len(group), device=group.device) - start[group[order]]
    return digits


def resolve(
    codes: Tensor, cost: Callable[[Tensor], Tensor], size: int, *, epsilon: float = 0.0, old: Tensor | None = None
) -> Tensor:
    """Gives items that share an identifier other codes on the last level, as long as their prefix has free ones.

    codes (n, L). cost: rows (…) -> squared distances (…, size) to the `size` codes of the last level. An item that does
    not share keeps its codes, as does an `old` one, (n,) bool. Those that share get the free codes one to one: in the
    order of Sinkhorn's uniform plan with `epsilon`, as in LC-Rec, or nearest first for 0. If a prefix has more items
    than free codes, the rest keep their codes and still share. There are never more collisions than before.
    """
    movable = shared(codes) if old is None else shared(codes) & ~old
    if not movable.any():
        return codes
    _, prefix = torch.unique(codes[:, :-1], dim=0, return_inverse=True)
    rows = movable.nonzero()[:, 0]
    rows = rows[prefix[rows].argsort(stable=True)]
    group, sizes = prefix[rows].unique_consecutive(return_counts=True)
    start, codes = sizes.cumsum(0) - sizes, codes.clone()
    for members in sizes.unique().tolist():  # groups of the same size are solved together
        for chosen in (sizes == members).nonzero()[:, 0].split(max(1, CELLS // (members * size * 4))):
            mine = rows[start[chosen][:, None] + torch.arange(members, device=rows.device)]  # (groups, members)
            taken = _taken(codes, prefix, ~movable, group[chosen], size)
            price = cost(mine)
            plan = sinkhorn(price, epsilon, forbidden=taken) if epsilon else -price
            given = _one_to_one(plan.masked_fill(taken[:, None], -torch.inf))
            codes[mine, -1] = torch.where(given >= 0, given, codes[mine, -1])
    return codes


def _taken(codes: Tensor, prefix: Tensor, staying: Tensor, groups: Tensor, size: int) -> Tensor:
    """Returns (groups, size) bool: the last-level codes that the `staying` items (n,) bool have under each prefix."""
    place = torch.full((int(prefix.max()) + 1,), -1, device=codes.device)
    place[groups] = torch.arange(len(groups), device=codes.device)
    holders = (staying & (place[prefix] >= 0)).nonzero()[:, 0]
    taken = torch.zeros(len(groups), size, dtype=torch.bool, device=codes.device)
    taken[place[prefix[holders]], codes[holders, -1]] = True
    return taken


def _one_to_one(plan: Tensor) -> Tensor:
    """Assigns distinct codes (groups, n) long greedily, by the largest entries of the plan (groups, n, k).

    -inf in the plan: the code is not available. -1 in the result: no code was left.
    """
    groups, n, k = plan.shape
    plan, each = plan.clone(), torch.arange(groups, device=plan.device)
    given = torch.full((groups, n), -1, device=plan.device)
    for _ in range(min(n, k)):
        best, at = plan.flatten(1).max(-1)
        row, code = at // k, at % k
        given[each, row] = torch.where(best > -torch.inf, code, given[each, row])
        plan[each, row], plan[each, :, code] = -torch.inf, -torch.inf
    return given
