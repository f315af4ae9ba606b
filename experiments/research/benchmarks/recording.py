"""Recording against plain generation with the same loop, wall time.

The tokens' part and the fixed part are told apart: a recording tries out the routers, opens a trace and syncs it to
disk once, however long it is.
"""

import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from experiments.demo.reference_models import NAMES
from experiments.research.benchmarks.alternating import Row, in_turns
from experiments.research.benchmarks.engine import PROMPT, decode, load
from tracekit.recorder.options import RecordOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 256
REPEATS = 7
RECORDED = (
    ("ids and weights", RecordOptions(max_new_tokens=NEW_TOKENS), "<= 1.05x"),
    ("logits and lookahead too", RecordOptions(max_new_tokens=NEW_TOKENS, logits=True, lookahead=(1,)), "<= 1.10x"),
)


def times(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", options: RecordOptions
) -> tuple[list[float], list[float]]:
    """Seconds of recording the prompt's continuation into new traces, and of only generating it."""
    from tracekit.recorder.prompts import Prompt
    from tracekit.recorder.recorder import record

    with tempfile.TemporaryDirectory() as folder:

        def recorded() -> None:
            trace = Path(folder) / f"{sum(1 for _ in Path(folder).iterdir())}.trace"
            record(model, tokenizer, [Prompt(id="prompt", prompt=PROMPT)], trace, options)

        def generated() -> None:
            decode(model, tokenizer, options.max_new_tokens, stop=True)

        ours, peer = in_turns(recorded, generated, repeats=REPEATS, uncounted=1)
    return ours, peer


def rows() -> list[Row]:
    """Ids and weights, then logits and lookahead too, then the fixed part.

    The shipped models are tiny: a layer takes a fraction of a millisecond, so that what recording adds to each
    looks as large as it can.
    """
    import torch

    torch.set_num_threads(1)
    found = []
    for name in NAMES:
        model, tokenizer = load(name, "eager")
        for what, options, target in RECORDED:
            ours, peer = times(model, tokenizer, options)
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
        ours, peer = times(model, tokenizer, RecordOptions(max_new_tokens=1))
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
