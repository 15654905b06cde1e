r"""Show what a target recommends in words: a few users, the titles of what they had last, and of their lists.

    atspeed show-lists --dataset toy --target_model output/toy/target --max_users 3

Titles are those of the data set's items.parquet or NAME.item.json; an item without one is shown by its number. An item
that the user chose next is marked.
"""

from pathlib import Path

from atspeed.benchmark.methods import check_fit
from atspeed.checkpoints.checkpoint import open_checkpoint
from atspeed.checkpoints.shapes import check_dtype
from genrec.data.dataset import load_dataset, take
from genrec.identifiers.item_texts import known_titles

SHOWN = 8  # items of a history, the latest


def main(
    dataset: str,
    target_model: str,
    draft_model: str | None = None,
    data_path: str = "data",
    index: str | None = None,
    split: str = "test",
    k: int = 10,
    max_users: int = 3,
    exclude_seen: bool = False,
    dtype: str = "float32",
    seed: int = 0,
) -> None:
    weights = check_dtype(dtype)
    data = load_dataset(data_path, dataset, index)
    check_fit(data.catalogue, "k", k)
    for path, stage in ((target_model, "finetune_llama"), (draft_model, "train")):
        if path:
            open_checkpoint(path, stage, stage, data)
    titles = known_titles(Path(data_path) / dataset)
    samples = take(data.samples(split, max_history=None), max_users, seed)

    from atspeed.recommend.recommender import Recommender

    def title(item: object) -> str:
        assert isinstance(item, int)  # no raw ids were asked for
        return titles.get(item, f"item {item}")

    recommender = Recommender.from_pretrained(target_model, draft_model, dtype=weights)
    lists = recommender.recommend([sample.history for sample in samples], k, exclude_seen=exclude_seen)
    for sample, found in zip(samples, lists, strict=True):
        history = [title(item) for item in sample.history]
        print(f"\nuser {sample.user}: {'… → ' if len(history) > SHOWN else ''}{' → '.join(history[-SHOWN:])}")
        for rank, (item, score) in enumerate(zip(found.items, found.scores, strict=True), 1):
            chosen = "  ← chosen next" if item in sample.labels else ""
            print(f"{rank:4}  {title(item)}  ({score:.2f}){chosen}")
        if not set(sample.labels) & set(found.items):
            print(f"      chosen next: {', '.join(title(item) for item in sample.labels)}")
