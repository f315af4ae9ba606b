"""Progress of long work, as a bar with rate and remaining time on stderr, if a person looks at it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports that `amount` more of the work is done."""

    def __call__(self, amount: float = 1) -> None: ...


@contextmanager
def reporting(
    asked: bool | Callable[[int], object], description: str, total: int | None
) -> Iterator[Callable[[int], object] | None]:
    """What work is to report to: a bar if True was asked for, the caller's own function, or nothing."""
    if asked is True:
        with progress(description, total) as advance:
            yield advance
    else:
        yield asked or None


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """A progress bar with rate and remaining time on stderr, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda amount=1: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class _Rate(ProgressColumn):
        """How much is done per second."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f}/s")

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount=1: bar.advance(task, amount)


@contextmanager
def meter(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of a total that is known only on the way: it is told how much is done, and of how much."""
    with ExitStack() as stack:
        advance, shown = None, 0

        def report(done: int, total: int) -> None:
            nonlocal advance, shown
            if advance is None:
                advance = stack.enter_context(progress(description, total))
            advance(done - shown)
            shown = done

        yield report
