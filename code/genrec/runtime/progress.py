"""Progress on the terminal."""

from collections.abc import Iterable

from tqdm import tqdm

from genrec.runtime.cli import is_main_process


def progress_bar(work: int | Iterable, description: str, unit: str, **options: object) -> tqdm:
    """A bar, on the process that speaks, for what takes long.

    work: how many units there are, for a bar that is updated by hand, or what is gone through. options: of tqdm.
    """
    options |= {"total": work} if isinstance(work, int) else {"iterable": work}
    # Half a second between two pictures: a log file keeps them all.
    return tqdm(desc=description, unit=unit, mininterval=0.5, disable=not is_main_process(), **options)
