"""Who computes: threads of this process, which share what plans have in common, or a Dask cluster."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from experiments.study.shared import SharedRoutings

Say = Callable[[float], object]
"""Told how many cells have just been finished."""
OnPiece = Callable[[], object]
"""What is called after each piece of work."""
Item = TypeVar("Item")
Made = TypeVar("Made")
Work = Callable[[SharedRoutings, Item, OnPiece | None], Made]
"""Called with what is shared, an item, and what to call after each piece of work."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers(Protocol):
    """Does `work` on each item, in any order."""

    def run(self, work: Work[Item, Made], items: Sequence[Item]) -> Iterator[tuple[Item, Made]]: ...


class Stopped(Exception):  # noqa: N818 - no error
    """Another thread has failed, or the user has had enough."""


class Threads:
    """Threads: the compiled passes run without the interpreter's lock."""

    def __init__(self, count: int | None = None) -> None:
        self._count = count or cores()
        self.shared = SharedRoutings()

    def run(self, work: Work[Item, Made], items: Sequence[Item]) -> Iterator[tuple[Item, Made]]:
        """Each item with what `work` made of it, as they finish. Stops soon after an error or an interruption."""
        stop = threading.Event()

        def on_piece() -> None:
            if stop.is_set():
                raise Stopped

        pool = ThreadPoolExecutor(self._count)
        waiting = iter(items)
        running: dict[Future[Made], Item] = {}
        try:
            while True:
                # Few at a time: a study may have a million cells.
                for item in waiting:
                    running[pool.submit(work, self.shared, item, on_piece)] = item
                    if len(running) >= 2 * self._count:
                        break
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            stop.set()
            # Nobody waits for what is not wanted any more: a policy that never returns would never let go.
            pool.shutdown(wait=False, cancel_futures=True)
