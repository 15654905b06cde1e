"""Progress bars on the terminal."""

from collections.abc import Iterable

from tqdm import tqdm

from genrec.runtime.cli import is_main_process


def progress_bar(work: int | Iterable, description: str, unit: str, **options: object) -> tqdm:
    """Returns a progress bar, which only the main process shows.

    work: the number of units, for a bar that is updated by hand, or the iterable to wrap. options: passed to tqdm.
    """
    options |= {"total": work} if isinstance(work, int) else {"iterable": work}
    # At most two redraws a second, since a log file keeps every one.
    return tqdm(desc=description, unit=unit, mininterval=0.5, disable=not is_main_process(), **options)
