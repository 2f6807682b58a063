"""Several files at once, each told as it is done.

Owns how many, and the words of progress. Called by the stores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from deploy.progress import Progress
from deploy.release.stores.bundle import Part

_AT_ONCE = 4
_WORTH_TELLING = 1_000_000


def each(parts: Sequence[Part], do: Callable[[Part], object], *, doing: str, progress: Progress) -> None:
    """Call `do` for every part, a few at a time; the first failure ends it, and those that were not begun."""
    total = sum(max(part.size, 0) for part in parts)
    done = 0
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="transfer") as pool:
        running = {pool.submit(do, part): part for part in parts}
        try:
            for future in as_completed(running):
                future.result()
                part = running[future]
                done += max(part.size, 0)
                if part.size >= _WORTH_TELLING:
                    progress.note(f"{doing} {part.path}: {as_size(done)} of {as_size(total)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def as_size(size: int) -> str:
    """A number of bytes as people read it, in decimal units."""
    if size < 1000:
        return f"{size} bytes"
    power = next((power for power in (1, 2, 3) if size < 999.95 * 1000**power), 4)
    return f"{size / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
