"""Recording against plain generation with the same loop, wall time.

The tokens' part and the fixed part are told apart: a recording tries out the routers, opens a trace and syncs it to
disk once, however long it is.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from experiments.demo.reference_models import NAMES
from experiments.research.benchmarks.alternating import Row
from experiments.research.benchmarks.engine import load

NEW_TOKENS = 256
REPEATS = 7


def record_into(model: Any, prompts: list[list[int]], folder: str, new: int, **what: Any) -> None:
    """Record one continuation of the benchmark's prompt into a new trace."""
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import Prompt
    from tracekit.recorder.recorder import record

    count = sum(1 for _ in Path(folder).iterdir())
    options = RecordOptions(max_new_tokens=new, **what)
    tokenizer: Any = _Encoded(prompts)
    record(model, tokenizer, [Prompt(id="prompt", prompt="-")], Path(folder) / f"{count}.trace", options)


def generate(model: Any, prompts: list[list[int]], new: int) -> None:
    """Continue the prompts greedily, until the model says that it is finished, as recording does."""
    from tracekit.recorder.generation import Decoding
    from tracekit.recorder.recorder import stop_tokens

    for _ in Decoding(model, prompts, max_new_tokens=new, stop=stop_tokens(model)).passes():
        pass


class _Encoded:
    """A tokenizer that knows one answer, so that only recording is timed."""

    def __init__(self, prompts: list[list[int]]) -> None:
        self._prompts = prompts

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": self._prompts[0]}


def rows() -> list[Row]:
    """Ids and weights, then logits and lookahead too, then the fixed part.

    The shipped models are tiny: a layer takes a fraction of a millisecond, so that what recording adds to each
    looks as large as it can.
    """
    import torch

    torch.set_num_threads(1)
    found = []
    for name in NAMES:
        model, prompts = load(name, "eager")
        for what, options, target in (
            ("ids and weights", {}, "<= 1.05x"),
            ("logits and lookahead too", {"logits": True, "lookahead": (1,)}, "<= 1.10x"),
        ):
            with tempfile.TemporaryDirectory() as folder:
                ours, peer = _turns(
                    partial(record_into, model, prompts, folder, NEW_TOKENS, **options),
                    partial(generate, model, prompts, NEW_TOKENS),
                )
            low, middle, high = quantiles([a / b for a, b in zip(ours, peer, strict=True)], n=4)
            found.append(
                Row(
                    f"{name}, {NEW_TOKENS} tokens, recording {what}, wall time (quartiles {low:.2f}x to {high:.2f}x)",
                    f"{1000 * median(ours) / NEW_TOKENS:.2f} ms/token",
                    f"{1000 * median(peer) / NEW_TOKENS:.2f} ms/token",
                    middle,
                    target,
                )
            )
        with tempfile.TemporaryDirectory() as folder:
            ours, peer = _turns(partial(record_into, model, prompts, folder, 1), partial(generate, model, prompts, 1))
        fixed = median(a - b for a, b in zip(ours, peer, strict=True))
        found.append(
            Row(
                f"{name}, one token recorded: the fixed part is {1000 * fixed:.0f} ms",
                f"{1000 * median(ours):.1f} ms",
                f"{1000 * median(peer):.1f} ms",
                median(ours) / median(peer),
                "-",
            )
        )
    return found


def _turns(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of each, in turns, after one run of each that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS + 1):
        for seconds, action in zip(times, (ours, peer), strict=True):
            start = perf_counter()
            action()
            if repeat:
                seconds.append(perf_counter() - start)
    return times
