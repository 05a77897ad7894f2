"""The same work on many items, in several processes, so that one bad item costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from modistill.data.cohort import Fault
from modistill.errors import ModistillError

__all__ = ["run_each"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_DIED = "the process that worked on this case died, as under a lack of memory"


def run_each(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[Item, Result | Fault]]:
    """Do the work on every item; yield each with its result, or with the fault that it has, as they are done.

    Args:
        work: picklable if `workers` > 1, as are the items.
        items: in the order in which they are begun.
        workers: processes; 0 or 1 works in this one.

    Yields:
        (item, result). A `ModistillError` becomes a `Fault`; so do a bug and a lack of memory. When a process dies, the items
        that were in work are tried again, each alone, and one that kills its process again is at fault.
    """
    if workers < 2 or len(items) < 2:
        for item in items:
            yield item, _guarded(work, item)
        return
    left = list(items)
    while left:
        suspects: list[Item] = []
        with _pool(min(workers, len(left))) as pool:
            flying: dict[Future[Result | Fault], Item] = {}
            while (left and not suspects) or flying:
                while left and not suspects and len(flying) < 2 * workers:
                    item = left.pop(0)
                    try:
                        flying[pool.submit(_guarded, work, item)] = item
                    except BrokenProcessPool:
                        suspects.append(item)
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    item = flying.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        suspects.append(item)
                    else:
                        yield item, result
        for item in suspects:
            yield item, _alone(work, item)


def _alone(work: Callable[[Item], Result], item: Item) -> Result | Fault:
    try:
        with _pool(1) as pool:
            return pool.submit(_guarded, work, item).result()
    except BrokenProcessPool:
        return Fault(None, None, _DIED, "use fewer --workers, or look at the size of its files")


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a forked child inherits the locks of this process's threads (progress bars, torch) in any state.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _guarded(work: Callable[[Item], Result], item: Item) -> Result | Fault:
    try:
        return work(item)
    except ModistillError as error:
        return Fault.of(error)
    except MemoryError:
        return Fault(None, None, "not enough memory", "use fewer --workers")
    except Exception as error:  # a bug met by one case is reported with that case, and the others go on
        return Fault(None, None, f"unexpected {type(error).__name__}: {error}", "please report this with the file")
