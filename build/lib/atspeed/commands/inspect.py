"""One page about a data set, to be looked at before training.

    atspeed inspect beauty

Interactions over time with the cuts, history lengths, popularity, codes by level, children by prefix, cold items,
shared identifiers. Writes output/DATASET/data.html, or --output FILE. Times are read from interactions.parquet, which
script/process_data.sh writes; without it the page says so. --max_history: the items of a history that models will read.
"""

from pathlib import Path

from genrec.data.dataset import load_dataset
from genrec.runtime.errors import UserError
from genrec.runtime.files import check_new, check_output, write_text


def main(
    dataset: str,
    /,
    data_path: str = "data",
    index: str | None = None,
    output: str | None = None,
    max_history: int = 20,
    overwrite: bool = False,
) -> None:
    path, folder = Path(output or f"output/{dataset}/data.html"), Path(data_path) / dataset
    if path.suffix != ".html":
        raise UserError(f"--output {path} must end in .html")
    check_output(path, file=True)
    check_new(path, overwrite or not output, file=True)  # what stands in the place of our own choice is an earlier page
    data = load_dataset(data_path, dataset, index)

    from genrec.identifiers.item_texts import known_titles
    from genrec.reports.description import read_times
    from genrec.reports.page import make_page

    write_text(path, make_page(data, str(folder), read_times(folder, data.splits), max_history, known_titles(folder)))
    print(f"written to {path}")
