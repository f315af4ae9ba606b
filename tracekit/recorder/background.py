"""Writing on a thread of its own, behind a queue that is bounded, so that a model never waits for the disk alone."""

import threading
from collections.abc import Callable
from queue import Queue
from types import TracebackType
from typing import Self

QUEUED = 4  # tasks that may wait; what each of them holds is the caller's business


class Background:
    """Runs tasks one after the other on a thread.

        with Background() as background:
            background.run(task)

    `run` waits while QUEUED tasks wait, which is what bounds memory. The first error of a task is raised by the next
    `run`, or on leaving; tasks behind it are dropped. Leaving waits for the tasks; leaving by an exception drops
    those that have not begun.
    """

    def __init__(self) -> None:
        self._tasks: Queue[Callable[[], object] | None] = Queue(QUEUED)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._work, name="trace-writer", daemon=True)

    def run(self, task: Callable[[], object]) -> None:
        """Have a task run after those before it."""
        self._raise()
        self._tasks.put(task)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._dropping = kind is not None
        self._tasks.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                if not self._dropping:
                    task()
            except BaseException as error:
                self._error = error
                self._dropping = True
