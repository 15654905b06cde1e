"""k-means, Sinkhorn and the resolution of collisions, against loops and against all possibilities."""

import itertools
import math

import pytest
import torch

from genrec.identifiers.quantise import collision_rate, distances, kmeans, nearest, resolve, shared, sinkhorn
from genrec.identifiers.rqvae_settings import RQVAESettings


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances_and_nearest_are_those_of_loops():
    points, centroids = random(2, 7, 3), random(5, 3, seed=1)
    found = distances(points, centroids)
    for i, j, k in itertools.product(range(2), range(7), range(5)):
        expected = sum((points[i, j, d] - centroids[k, d]) ** 2 for d in range(3))
        assert found[i, j, k].item() == pytest.approx(expected.item(), abs=1e-5)
    expected = [min(range(5), key=lambda k: (point - centroids[k]).norm().item()) for point in points[0]]
    assert nearest(points[0], centroids).tolist() == expected
    assert nearest(points[0], centroids[[0, 0]]).tolist() == [0] * 7, "the first of equally near ones"


def test_kmeans_finds_the_best_of_all_partitions():
    points = torch.tensor([[0.0, 0], [0, 1], [1, 0], [9, 9], [9, 10], [0, 20], [1, 21]])

    def cost(labels):
        groups = [[p for p, label in zip(points, labels, strict=True) if label == k] for k in range(3)]
        return sum((torch.stack(g) - torch.stack(g).mean(0)).square().sum().item() for g in groups if g)

    best = min(cost(labels) for labels in itertools.product(range(3), repeat=7))
    for seed in range(5):
        centroids = kmeans(points, 3, seed=seed)
        assert distances(points, centroids).amin(-1).sum().item() == pytest.approx(best, abs=1e-4)
    assert torch.equal(kmeans(points, 3, seed=4), centroids), "the same for the same seed"


@pytest.mark.parametrize(("distinct", "k"), [(4, 4), (4, 7), (1, 3), (30, 16)])
def test_kmeans_uses_every_centroid_it_can(distinct, k):
    points = random(distinct, 6).repeat(3, 1)
    centroids = kmeans(points, k)
    assert centroids.shape == (k, 6)
    assert centroids.isfinite().all()
    assert len(nearest(points, centroids).unique()) == min(distinct, k)


def naive_sinkhorn(cost, epsilon, iterations):
    n, k = len(cost), len(cost[0])
    flat = [c for row in cost for c in row]
    middle, half = (max(flat) + min(flat)) / 2, (max(flat) - min(flat)) / 2 + 1e-5
    plan = [[math.exp(-(c - middle) / half / epsilon) for c in row] for row in cost]
    for _ in range(iterations):
        for j in range(k):
            total = sum(row[j] for row in plan)
            for row in plan:
                row[j] *= n / k / total
        plan = [[value / sum(row) for value in row] for row in plan]
    return plan


def test_sinkhorn_is_that_of_loops_and_gives_every_code_its_share():
    cost = random(9, 6).square()
    plan = sinkhorn(cost, 0.05, 20)
    torch.testing.assert_close(
        plan, torch.tensor(naive_sinkhorn(cost.double().tolist(), 0.05, 20)).double(), atol=1e-5, rtol=1e-4
    )
    for plan in (sinkhorn(cost, 0.1, 2000), sinkhorn(torch.stack([cost, cost + 3]), 0.1, 2000)[1]):
        torch.testing.assert_close(plan.sum(-1), torch.ones(9).double())
        torch.testing.assert_close(plan.sum(-2), torch.full((6,), 1.5).double(), rtol=1e-3, atol=1e-3)
    lopsided = torch.tensor([[0.0, 1.0]]).repeat(40, 1) + 0.01 * random(40, 2)
    assert lopsided.argmin(-1).sum() == 0
    assert sinkhorn(lopsided, 0.003, 2000).argmax(-1).sum() in range(18, 23), (
        "the codes are used equally, though all prefer the first"
    )


def test_sinkhorn_gives_nobody_a_forbidden_code():
    cost, forbidden = random(2, 4, 5).square(), torch.tensor([[True, False, False, True, False], [True] * 5])
    plan = sinkhorn(cost, 0.01, forbidden=forbidden)
    assert (plan[0][:, forbidden[0]] == 0).all()
    torch.testing.assert_close(plan[0][:, ~forbidden[0]], sinkhorn(cost[0][:, ~forbidden[0]], 0.01))
    torch.testing.assert_close(plan[0].sum(-1), torch.ones(4).double())
    assert (plan[1] == 0).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.003])
@pytest.mark.parametrize(
    ("n", "prefixes", "size", "n_old"), [(60, 8, 16, 0), (200, 3, 16, 0), (120, 9, 16, 40), (50, 1, 64, 20)]
)
def test_resolution_makes_as_many_items_distinct_as_there_are_codes(n, prefixes, size, n_old, epsilon):
    generator = torch.Generator().manual_seed(n)
    codes = torch.stack([torch.randint(prefixes, (n,), generator=generator), torch.zeros(n).long(),
                         torch.randint(size // 4, (n,), generator=generator)], -1)  # fmt: skip
    cost, old = random(n, size, seed=1).square(), torch.arange(n) < n_old
    found = resolve(codes, lambda rows: cost[rows], size, epsilon=epsilon, old=old if n_old else None)
    assert torch.equal(found[:, :-1], codes[:, :-1]), "on the last level only"
    staying = old | ~shared(codes)
    assert torch.equal(found[staying], codes[staying])
    assert collision_rate(found) <= collision_rate(codes)
    for prefix in codes[:, 0].unique():
        mine = codes[:, 0] == prefix
        kept, rest = len(codes[mine & staying, -1].unique()), int((mine & ~staying).sum())
        free = size - kept
        assert len(found[mine, -1].unique()) == kept + min(rest, free), "as many as there are codes"


def test_resolution_nearest_first_is_that_of_loops():
    n, size = 40, 12
    codes = torch.stack([torch.arange(n) % 5, torch.arange(n) % 3], -1)
    cost = random(n, size).square()
    expected = codes.clone()
    for prefix in range(5):
        open_rows = [i for i in range(n) if codes[i, 0] == prefix]
        open_codes = list(range(size))
        while open_rows and open_codes:
            row, code = min(itertools.product(open_rows, open_codes), key=lambda rc: cost[rc].item())
            expected[row, 1] = code
            open_rows.remove(row)
            open_codes.remove(code)
    assert torch.equal(resolve(codes, lambda rows: cost[rows], size), expected)


@pytest.mark.parametrize(
    ("method", "given", "expected"), [("rq-vae", None, 0.003), ("rq-kmeans", None, 0), ("rq-kmeans", 0.01, 0.01)]
)
def test_rq_kmeans_resolves_by_the_nearest_code_unless_told_otherwise(method, given, expected):
    assert RQVAESettings(method=method, epsilon=given).entropy == expected
