"""Recording against plain generation with the same loop, wall time."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.engine import NEW_TOKENS, compare, decode, load
from experiments.benchmarks.measure import Row
from experiments.reference_model import NAMES


def record_into(model: Any, prompts: list[list[int]], folder: str, **what: Any) -> None:
    """Record one continuation of the benchmark's prompt into a new trace."""
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import Prompt
    from tracekit.recorder.recorder import record

    count = sum(1 for _ in Path(folder).iterdir())
    options = RecordOptions(max_new_tokens=NEW_TOKENS, **what)
    tokenizer: Any = _Encoded(prompts)
    record(model, tokenizer, [Prompt(id="prompt", prompt="-")], Path(folder) / f"{count}.trace", options)


class _Encoded:
    """A tokenizer that knows one answer, so that only recording is timed."""

    def __init__(self, prompts: list[list[int]]) -> None:
        self._prompts = prompts

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": self._prompts[0]}


def rows() -> list[Row]:
    """Ids and weights, then logits and lookahead too. Small models make the overhead look as large as it can."""
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
                recording = partial(record_into, model, prompts, folder, **options)
                ours, peer = compare(recording, partial(decode, model, prompts))
            found.append(
                Row(
                    f"{name}, recording {what}, wall time",
                    f"{1000 * ours / NEW_TOKENS:.2f} ms/token",
                    f"{1000 * peer / NEW_TOKENS:.2f} ms/token",
                    ours / peer,
                    target,
                )
            )
    return found
