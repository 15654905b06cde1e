"""SASRec learns an order, looks back only, and is the same for the same seed."""

import torch

from genrec.data.dataset import Sample
from genrec.evaluation.sasrec import NOTHING, Recipe, SASRec, train_sasrec, windows

ITEMS = range(100, 130)  # numbers that are not rows
QUICK = Recipe(hidden_size=16, layers=1, dropout=0.0, batch_size=8, learning_rate=3e-2, epochs=15)


def cycle(start, length):
    return [100 + (start + i) % 30 for i in range(length)]


def train(seed=0):
    histories = {user: cycle(7 * user, 12) for user in range(30)}
    valid = [Sample(user, tuple(cycle(user, 4)), (cycle(user, 5)[-1],)) for user in range(30)]
    return train_sasrec(histories, valid, ITEMS, max_history=5, recipe=QUICK, seed=seed)


def test_it_learns_a_cycle_and_is_the_same_for_the_same_seed():
    state = torch.random.get_rng_state()
    model, again, other = train(), train(), train(seed=1)
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's random numbers are touched"
    histories = [cycle(start, length) for start in range(30) for length in (1, 3, 9)]
    assert [best for (best,) in model.recommend(histories, 1)] == [100 + (h[-1] - 99) % 30 for h in histories]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(model.item.weight, other.item.weight)


def test_what_comes_later_does_not_matter():
    torch.manual_seed(0)
    model = SASRec(ITEMS, 6, Recipe()).eval()
    short, long = model.pad([[104, 111, 107]]), model.pad([[104, 111, 107, 120, 101], [110]])
    assert (long[1, 1:] == NOTHING).all()
    torch.testing.assert_close(model(short)[0], model(long.clamp(min=0))[0, :3])
    one, two = model.recommend([[104, 111, 107], [110] * 6], 30), model.recommend([[104, 111, 107]], 30)
    assert one[0] == two[0], "a list does not depend on the others of its batch"
    assert sorted(one[0]) == list(ITEMS)
    old = [101, 102]
    assert model.recommend([old + [110] * 6], 30)[0] == one[1], "only the last items are read"


def test_windows_hold_every_transition_once():
    train = {0: list(range(8)), 1: [9], 2: [], 3: [20, 21, 22, 23]}
    assert windows(train, 4) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7], [20, 21, 22, 23]]
