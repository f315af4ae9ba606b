"""Computing on a Dask cluster. Workers may die and join: what a dead one was at is done again by another.

Every worker must see the traces under the paths that the study names, and have this package. Results are made of the
inputs alone, so it does not show in them who computed what.
"""

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from experiments.study.shared import SharedRoutings
from experiments.study.sources import sources_digest
from experiments.study.workers import Item, Made, Work, cores
from tracekit.errors import StudyError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

IN_FLIGHT = 4  # tasks for each thread of the cluster
CONNECT_S = 15
FAILURES = 20
"""Workers that may die over one task before it is given up, on a cluster of our own."""
KEEP = {"MALLOC_TRIM_THRESHOLD_": 1 << 28, "MALLOC_MMAP_THRESHOLD_": 1 << 25}
"""Memory that glibc is to keep in a worker of our own. Dask has it give back all beyond 64 KiB, and then each piece
of a trace costs page faults anew: about a sixth of the time."""


class Cluster:
    """Workers of the Dask scheduler at `address`, or processes of a cluster of our own if that is "local"."""

    def __init__(self, address: str, count: int | None = None) -> None:
        import distributed  # noqa: F401 - where it is not installed, this is known before anything is written

        self._address, self._count = address, count

    def run(self, work: Work[Item, Made], items: Sequence[Item]) -> Iterator[tuple[Item, Made]]:
        """Each item with what `work` made of it, as they finish."""
        from distributed import CancelledError, KilledWorker, as_completed

        if not items:
            return
        with self._connected() as client:
            waiting = iter(items)
            running = as_completed(with_results=False)
            item_of: dict[object, Item] = {}
            while True:
                room = IN_FLIGHT * max(1, sum(client.nthreads().values()))
                while len(item_of) < room and (item := next(waiting, None)) is not None:
                    future = client.submit(partial(at_worker, work, sources_digest()), item, pure=False)
                    item_of[future.key] = item
                    running.add(future)
                if not item_of:
                    return
                future = next(running)
                try:
                    result = future.result()
                except (KilledWorker, CancelledError) as lost:
                    raise StudyError(f"the Dask cluster gave up: {lost}") from None
                yield item_of.pop(future.key), result

    @contextmanager
    def _connected(self) -> "Iterator[Client]":
        """A client, closed in the end, and after it a cluster of our own."""
        from distributed import Client

        with ExitStack() as opened:
            if self._address == "local":
                try:
                    own = local_cluster(self._count or cores())
                except (OSError, RuntimeError) as problem:
                    raise StudyError(f"Dask's own workers do not start: {problem}; --workers N needs no Dask") from None
                opened.callback(own.close)
                client = Client(own)
            else:
                try:
                    client = Client(self._address, timeout=CONNECT_S)
                except (OSError, ValueError) as problem:
                    raise StudyError(f"no Dask scheduler answers at {self._address}: {problem}") from None
            opened.callback(client.close)
            yield client


def local_cluster(workers: int) -> "LocalCluster":
    """A scheduler and workers of our own, a process each."""
    import dask
    from distributed import LocalCluster

    keep = {f"distributed.nanny.pre-spawn-environ.{name}": size for name, size in KEEP.items()}
    with dask.config.set({"distributed.scheduler.allowed-failures": FAILURES} | keep), _not_interrupted():
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # any free port: None is 8787, which another study may have
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
        )


@contextmanager
def _not_interrupted() -> Iterator[None]:
    """Processes that are started here do not hear of Ctrl-C, which a terminal tells every one: we end them ourselves.

    What is held back is inherited by the thread that starts them. Python's own tracker of resources lets go of it where
    it has to be started then, so it is started before, and told that what we
    had no time to put away when we were interrupted is no news.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def at_worker(work: Work[Item, Made], sources: str, item: Item) -> Made:
    """Runs on a worker, whose source must be the one that names the results."""
    if sources != sources_digest():
        raise StudyError("a Dask worker has another version of moe-tracekit: install the same everywhere")
    return work(shared_here(), item, None)


@cache
def shared_here() -> SharedRoutings:
    """What this process's tasks share."""
    return SharedRoutings()
