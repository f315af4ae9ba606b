"""Locks, threads and executors of the host that tell the clocks what they order."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch

from tests.helpers.emulated_cuda.clocks import Clock
from tests.helpers.emulated_cuda.streams import Streams

Entered = Callable[[], AbstractContextManager[object]]
"""What a thread runs in, so that its operations are seen"""


class Lock:
    """A reentrant lock: what was done before it was released happens before what is done once it is taken."""

    def __init__(self, streams: Streams) -> None:
        self._streams, self._lock, self._clock = streams, threading.RLock(), Clock()

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        taken = self._lock.acquire(*args, **kwargs)
        if taken:
            self._streams.host.hear(self._clock)
        return taken

    def release(self) -> None:
        self._clock = self._streams.host.tell()
        self._lock.release()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    # What `threading.Condition` asks of a reentrant lock.

    def _release_save(self) -> Any:
        self._clock = self._streams.host.tell()
        return self._lock._release_save()  # type: ignore[attr-defined]

    def _acquire_restore(self, state: Any) -> None:
        self._lock._acquire_restore(state)  # type: ignore[attr-defined]
        self._streams.host.hear(self._clock)

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]


def threads(streams: Streams, entered: Entered) -> SimpleNamespace:
    """The `threading` module, with threads and conditions that tell."""

    class Thread(threading.Thread):
        _clock: Clock

        def start(self) -> None:
            self._clock = streams.host.tell()
            super().start()

        def run(self) -> None:
            streams.host.hear(self._clock)
            torch.set_num_threads(1)  # as the caller's: kernels that split work otherwise round otherwise
            with entered():
                super().run()
            self._clock = streams.host.tell()

        def join(self, timeout: float | None = None) -> None:
            super().join(timeout)
            if not self.is_alive():
                streams.host.hear(self._clock)

    return SimpleNamespace(
        **{**vars(threading), "Thread": Thread, "Condition": lambda: threading.Condition(Lock(streams))}  # type: ignore[arg-type]
    )


def executors(streams: Streams, entered: Entered) -> type[ThreadPoolExecutor]:
    """An executor whose jobs come after their submission, and before their result."""

    class Executor(ThreadPoolExecutor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            asked, done = streams.host.tell(), Clock()

            def job() -> Any:
                streams.host.hear(asked)
                try:
                    with entered():
                        return function(*args, **kwargs)
                finally:
                    done.update(streams.host.tell())

            future = super().submit(job)
            result = future.result

            def heard(timeout: float | None = None) -> Any:
                try:
                    return result(timeout)
                finally:
                    streams.host.hear(done)

            future.result = heard  # type: ignore[method-assign]
            return future

    return Executor
